//! Decisions whose expected results were determined by hand, and documents that must be rejected.

use Outcome::{Allowed, Denied, NotAllowed};
use appferry::ram::Document;
use serde_json::{Value, json};

use super::{
    compare::{Typed, compile, keys},
    naive::{self, Call, Outcome},
};

const SYNC: &str = "ehpc:SynchronizeApp";
const GET: &str = "ehpc:GetImage";
const APP: &str = "acs:ehpc:*:*:app/ci-vm-1";

/// Asserts that both evaluators return the expected decision.
fn judge(statements: &Value, action: &str, resource: &str, context: &[(&str, &str)], expected: Outcome) {
    let document = json!({ "Version": "1", "Statement": statements });
    let context = context.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let call = Call { action: action.to_owned(), resource: resource.to_owned(), context };
    assert_eq!(naive::decide(std::slice::from_ref(&document), &call), expected, "by the rules: {call:?} by {document}");
    let decided = Typed::of(&call).judged_by(&compile(std::slice::from_ref(&document)));
    assert_eq!(decided, expected, "by the service: {call:?} by {document}");
}

fn allow(action: &Value, resource: &Value) -> Value {
    json!({ "Effect": "Allow", "Action": action, "Resource": resource })
}

fn deny(action: &str, resource: &str) -> Value {
    json!({ "Effect": "Deny", "Action": action, "Resource": resource })
}

#[test]
fn actions() {
    for (patterns, action, expected) in [
        (json!(SYNC), SYNC, Allowed),
        (json!("EHPC:synchronizeAPP"), SYNC, Allowed),
        (json!("ehpc:*"), SYNC, Allowed),
        (json!("*"), SYNC, Allowed),
        (json!("***"), SYNC, Allowed),
        (json!("ehpc:Synchronize???"), SYNC, Allowed),
        (json!("ehpc:Synchronize??"), SYNC, NotAllowed),
        (json!("ehpc:*App"), SYNC, Allowed),
        (json!("e*:S*A*p"), SYNC, Allowed),
        (json!("ecs:*"), SYNC, NotAllowed),
        (json!(GET), SYNC, NotAllowed),
        (json!([GET, SYNC]), SYNC, Allowed),
        (json!([GET, "ecs:*"]), SYNC, NotAllowed),
    ] {
        judge(&allow(&patterns, &json!("*")), action, "*", &[], expected);
    }
    let but = |patterns: Value| json!({ "Effect": "Allow", "NotAction": patterns, "Resource": "*" });
    judge(&but(json!("ehpc:Remove*")), SYNC, "*", &[], Allowed);
    judge(&but(json!("ehpc:Sync*")), SYNC, "*", &[], NotAllowed);
    judge(&but(json!(["ehpc:Get*", "EHPC:SYNC*"])), SYNC, "*", &[], NotAllowed);
    judge(&but(json!(["ehpc:Get*", "ehpc:List*"])), SYNC, "*", &[], Allowed);
    judge(&but(json!("*")), SYNC, "*", &[], NotAllowed);
}

#[test]
fn resources() {
    for (patterns, resource, expected) in [
        (json!("*"), APP, Allowed),
        (json!("**"), "*", Allowed),
        (json!(APP), APP, Allowed),
        (json!("acs:ehpc:*:*:app/*"), APP, Allowed),
        (json!("acs:ehpc:*:*:app/ci-vm-?"), APP, Allowed),
        (json!("acs:ehpc:*:*:app/CI-VM-1"), APP, NotAllowed),
        (json!("acs:ehpc:*:*:*"), APP, Allowed),
        (json!("acs:*:*:*:app/ci-*"), APP, Allowed),
        (json!("acs:ecs:*:*:*"), APP, NotAllowed),
        (json!("acs:ehpc:cn-hangzhou:1234:app/ci-vm-1"), APP, NotAllowed),
        (json!("acs:ehpc:cn-hangzhou:*:app/*"), "acs:ehpc:cn-hangzhou:1234:app/x", Allowed),
        // A wildcard matches only within one of the five parts of a resource name. Only the last part may contain
        // colons.
        (json!("acs:ehpc:*:1234:app/x"), "acs:ehpc:*:*:app/y:1234:app/x", NotAllowed),
        (json!("acs:ehpc:*:*:app/*"), "acs:ehpc:*:*:app/a:b", Allowed),
        // Only the pattern `*` covers an action on all resources.
        (json!("acs:ehpc:*:*:app/*"), "*", NotAllowed),
        (json!(["acs:ehpc:*:*:*", "*"]), "*", Allowed),
        (json!(["acs:ehpc:*:*:app/a", "acs:ehpc:*:*:app/b"]), "acs:ehpc:*:*:app/b", Allowed),
    ] {
        judge(&allow(&json!("*"), &patterns), GET, resource, &[], expected);
    }
}

#[test]
fn an_explicit_deny_then_an_allow_else_denied() {
    let all = allow(&json!("*"), &json!("*"));
    for (statements, action, resource, expected) in [
        (json!([all]), SYNC, "*", Allowed),
        (json!([all, deny("ehpc:Sync*", "*")]), SYNC, "*", Denied),
        (json!([deny("ehpc:Sync*", "*"), all]), SYNC, "*", Denied),
        (json!([deny("ehpc:Sync*", "*"), all]), GET, APP, Allowed),
        (json!([deny("ehpc:Sync*", "*")]), GET, APP, NotAllowed),
        // A Deny on specific resources does not affect an action on all resources.
        (json!([all, deny("*", "acs:ehpc:*:*:app/*")]), SYNC, "*", Allowed),
        (json!([all, deny("*", "acs:ehpc:*:*:app/*")]), GET, APP, Denied),
        (json!([all, all, deny("*", "*")]), SYNC, "*", Denied),
    ] {
        judge(&statements, action, resource, &[], expected);
    }
}

#[test]
fn conditions() {
    let (yes, no) = (Allowed, NotAllowed);
    for (operator, key, values, fact, expected) in [
        ("StringEquals", "corp:team", json!("hpc"), Some("hpc"), yes),
        ("StringEquals", "corp:team", json!("hpc"), Some("HPC"), no),
        ("StringEquals", "corp:team", json!(["ops", "hpc"]), Some("hpc"), yes),
        ("StringEquals", "corp:team", json!("hpc"), None, no),
        ("StringEquals", "CORP:Team", json!("hpc"), Some("hpc"), yes),
        ("StringEquals", "corp:team", json!("h*"), Some("hpc"), no),
        ("StringNotEquals", "corp:team", json!("hpc"), Some("ops"), yes),
        ("StringNotEquals", "corp:team", json!(["ops", "hpc"]), Some("ops"), no),
        ("StringNotEquals", "corp:team", json!(["ops", "hpc"]), Some("web"), yes),
        ("StringNotEquals", "corp:team", json!("hpc"), None, yes),
        ("StringEqualsIgnoreCase", "corp:team", json!("HPC-É"), Some("hpc-é"), yes),
        ("StringEqualsIgnoreCase", "corp:team", json!("hpc"), Some("hp"), no),
        ("StringNotEqualsIgnoreCase", "corp:team", json!("HPC"), Some("hpc"), no),
        ("StringLike", "corp:team", json!("h?c-*"), Some("hpc-é"), yes),
        ("StringLike", "corp:team", json!("h?c"), Some("hpc-é"), no),
        ("StringLike", "corp:team", json!("?"), Some("é"), yes),
        ("StringNotLike", "corp:team", json!(["h*", "o*"]), Some("ops"), no),
        ("StringNotLike", "corp:team", json!(["h*", "o*"]), Some("web"), yes),
        ("NumericEquals", "corp:level", json!("1"), Some("1.0"), yes),
        ("NumericEquals", "corp:level", json!(1), Some("1"), yes),
        ("NumericEquals", "corp:level", json!([1, 2.5]), Some("2.5"), yes),
        ("NumericEquals", "corp:level", json!(1), Some("many"), no),
        ("NumericNotEquals", "corp:level", json!([1, 2]), Some("2"), no),
        ("NumericNotEquals", "corp:level", json!([1, 2]), Some("3"), yes),
        ("NumericLessThan", "corp:level", json!(5), Some("-1"), yes),
        ("NumericLessThan", "corp:level", json!(5), Some("5"), no),
        ("NumericLessThanEquals", "corp:level", json!(5), Some("5"), yes),
        ("NumericGreaterThan", "corp:level", json!(5), Some("10"), yes),
        ("NumericGreaterThan", "corp:level", json!(5), Some("5"), no),
        ("NumericGreaterThanEquals", "corp:level", json!(5), Some("5"), yes),
        ("NumericGreaterThanEquals", "corp:level", json!(5), None, no),
        ("DateEquals", "acs:CurrentTime", json!("2026-11-25T16:00:00+08:00"), Some("2026-11-25T08:00:00Z"), yes),
        ("DateNotEquals", "acs:CurrentTime", json!("2026-11-25T16:00:00+08:00"), Some("2026-11-25T08:00:00Z"), no),
        ("DateLessThan", "acs:CurrentTime", json!("2027-01-01T00:00:00Z"), Some("2026-12-31T23:59:59Z"), yes),
        ("DateLessThan", "acs:CurrentTime", json!("2027-01-01T00:00:00Z"), Some("2027-01-01T00:00:00Z"), no),
        ("DateLessThanEquals", "acs:CurrentTime", json!("2027-01-01T00:00:00Z"), Some("2027-01-01T00:00:00Z"), yes),
        ("DateGreaterThan", "acs:CurrentTime", json!("2024-02-29T00:00:00Z"), Some("2024-03-01T00:00:00Z"), yes),
        ("DateGreaterThanEquals", "acs:CurrentTime", json!("2024-02-29T00:00:00Z"), Some("2024-02-28T23:59:59Z"), no),
        ("DateGreaterThan", "acs:CurrentTime", json!("2024-02-29T00:00:00Z"), None, no),
        ("Bool", "acs:SecureTransport", json!("true"), Some("true"), yes),
        ("Bool", "acs:SecureTransport", json!(true), Some("false"), no),
        ("Bool", "acs:SecureTransport", json!("False"), Some("false"), yes),
        ("Bool", "acs:SecureTransport", json!("true"), None, no),
        ("IpAddress", "acs:SourceIp", json!("10.0.0.0/8"), Some("10.1.2.3"), yes),
        ("IpAddress", "acs:SourceIp", json!("10.0.0.0/8"), Some("::ffff:10.1.2.3"), yes),
        ("IpAddress", "acs:SourceIp", json!("10.0.0.0/8"), Some("11.1.2.3"), no),
        ("IpAddress", "acs:SourceIp", json!(["192.168.0.1", "10.1.2.3"]), Some("10.1.2.3"), yes),
        ("IpAddress", "acs:SourceIp", json!("10.1.2.3"), Some("10.1.2.4"), no),
        ("IpAddress", "acs:SourceIp", json!("0.0.0.0/0"), Some("fd00::1"), no),
        ("IpAddress", "acs:SourceIp", json!("fd00::/8"), Some("fd12::1"), yes),
        ("IpAddress", "acs:SourceIp", json!("10.0.0.0/8"), None, no),
        ("NotIpAddress", "acs:SourceIp", json!(["10.0.0.0/8", "192.168.0.0/16"]), Some("192.168.1.1"), no),
        ("NotIpAddress", "acs:SourceIp", json!("10.0.0.0/8"), Some("192.0.2.1"), yes),
        ("NotIpAddress", "acs:SourceIp", json!("10.0.0.0/8"), None, yes),
        ("StringLike", "acs:PrincipalARN", json!("acs:ram::1234:role/*"), Some("acs:ram::1234:role/ci"), yes),
        ("StringLike", "acs:PrincipalArn", json!("acs:ram::1234:role/*"), Some("acs:ram::1234:user/ci"), no),
    ] {
        let statement =
            json!({ "Effect": "Allow", "Action": "*", "Resource": "*", "Condition": { operator: { key: values } } });
        let key = if key.starts_with("acs:") { key.replace("Arn", "ARN") } else { key.to_lowercase() };
        let context: Vec<_> = fact.map(|fact| (key.as_str(), fact)).into_iter().collect();
        judge(&statement, SYNC, "*", &context, expected);
    }
}

/// A condition key with several values is a set (RAM, "Condition operators", set operators).
#[test]
fn a_set_is_asked_as_a_whole_or_each_of_it() {
    let (yes, no) = (Allowed, NotAllowed);
    for (operator, values, facts, expected) in [
        ("StringEquals", json!("interns"), &["staff", "interns"][..], yes),
        ("StringEquals", json!("interns"), &["staff"], no),
        ("StringEquals", json!("interns"), &[], no),
        ("StringNotEquals", json!("interns"), &["staff", "interns"], no),
        ("StringNotEquals", json!("interns"), &["staff", "ops"], yes),
        ("StringNotEquals", json!("interns"), &[], yes),
        ("StringLike", json!("int*"), &["staff", "interns"], yes),
        ("ForAnyValue:StringEquals", json!("interns"), &["staff", "interns"], yes),
        ("ForAnyValue:StringEquals", json!(["ops", "interns"]), &["staff"], no),
        ("ForAnyValue:StringEquals", json!("interns"), &[], no),
        ("ForAnyValue:StringNotEquals", json!("interns"), &["staff", "interns"], yes),
        ("ForAnyValue:StringNotEquals", json!(["staff", "interns"]), &["staff", "interns"], no),
        ("ForAnyValue:StringNotEquals", json!("interns"), &[], no),
        ("ForAllValues:StringEquals", json!(["staff", "ops"]), &["staff", "ops"], yes),
        ("ForAllValues:StringEquals", json!(["staff", "ops"]), &["staff", "interns"], no),
        ("ForAllValues:StringEquals", json!("staff"), &[], yes),
        ("ForAllValues:StringNotEquals", json!("interns"), &["staff", "interns"], no),
        ("ForAllValues:StringNotEquals", json!("interns"), &["staff", "ops"], yes),
        ("ForAllValues:StringNotEquals", json!("interns"), &[], yes),
        ("ForAllValues:NumericLessThan", json!(5), &["1", "4.5"], yes),
        ("ForAllValues:NumericLessThan", json!(5), &["1", "many"], no),
        ("ForAnyValue:NumericLessThan", json!(5), &["9", "1"], yes),
    ] {
        let statement = json!({ "Effect": "Allow", "Action": "*", "Resource": "*", "Condition": { operator: { "corp:team": values } } });
        let context: Vec<_> = facts.iter().map(|fact| ("corp:team", *fact)).collect();
        judge(&statement, SYNC, "*", &context, expected);
    }
    // A Deny applies if its condition holds for one of several values.
    let statements = json!([
        allow(&json!("*"), &json!("*")),
        { "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": { "StringEquals": { "corp:team": "interns" } } },
    ]);
    judge(&statements, SYNC, "*", &[("corp:team", "staff"), ("corp:team", "interns")], Denied);
    judge(&statements, SYNC, "*", &[("corp:team", "staff")], Allowed);
    let unknown = r#"{"Version":"1","Statement":{"Effect":"Deny","Action":"*","Resource":"*",
        "Condition":{"ForEachValue:Bool":{"corp:level":true}}}}"#;
    let error = Document::parse(unknown, &keys()).expect_err("there is none");
    assert!(
        error.path.ends_with("Condition.ForEachValue:Bool") && error.problem.contains("no such operator"),
        "{error}"
    );
}

#[test]
fn all_conditions_must_hold() {
    let both = json!({ "IpAddress": { "acs:SourceIp": "10.0.0.0/8" }, "Bool": { "acs:SecureTransport": "true" } });
    let one_operator =
        json!({ "StringEquals": { "corp:team": ["hpc", "ops"], "acs:PrincipalARN": "acs:ram::1:user/a" } });
    for (condition, context, expected) in [
        (&both, &[("acs:SourceIp", "10.0.0.1"), ("acs:SecureTransport", "true")][..], Allowed),
        (&both, &[("acs:SourceIp", "10.0.0.1"), ("acs:SecureTransport", "false")], NotAllowed),
        (&both, &[("acs:SourceIp", "11.0.0.1"), ("acs:SecureTransport", "true")], NotAllowed),
        (&one_operator, &[("corp:team", "ops"), ("acs:PrincipalARN", "acs:ram::1:user/a")], Allowed),
        (&one_operator, &[("corp:team", "ops"), ("acs:PrincipalARN", "acs:ram::1:user/b")], NotAllowed),
        (&one_operator, &[("corp:team", "web"), ("acs:PrincipalARN", "acs:ram::1:user/a")], NotAllowed),
    ] {
        let statement = json!({ "Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition });
        judge(&statement, SYNC, "*", context, expected);
    }
    // A Deny whose condition does not hold has no effect.
    let statements = json!([
        allow(&json!("*"), &json!("*")),
        { "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": { "NotIpAddress": { "acs:SourceIp": "10.0.0.0/8" } } },
    ]);
    judge(&statements, SYNC, "*", &[("acs:SourceIp", "10.9.9.9")], Allowed);
    judge(&statements, SYNC, "*", &[("acs:SourceIp", "192.0.2.1")], Denied);
    judge(&statements, SYNC, "*", &[], Denied);
}

/// The error for an invalid document contains the path of the invalid element.
#[test]
fn a_faulty_document_is_refused_with_the_path_to_the_fault() {
    let statement = |more: &str| {
        format!(r#"{{"Version":"1","Statement":[{{"Effect":"Allow","Action":"*","Resource":"*"}},{{{more}}}]}}"#)
    };
    let condition =
        |text: &str| statement(&format!(r#""Effect":"Deny","Action":"*","Resource":"*","Condition":{text}"#));
    for (document, path, part) in [
        ("{".to_owned(), "", "EOF"),
        ("[]".to_owned(), "", "a list, not an object"),
        (r#"{"Version":"1"}"#.to_owned(), "", "no Statement"),
        (r#"{"Statement":[]}"#.to_owned(), "", "no Version"),
        (r#"{"Version":"2","Statement":[]}"#.to_owned(), "Version", "\"2\" is not \"1\""),
        (r#"{"Version":1,"Statement":[]}"#.to_owned(), "Version", "a number"),
        (r#"{"Version":"1","Statement":[]}"#.to_owned(), "Statement", "empty"),
        (r#"{"Version":"1","Statement":"x"}"#.to_owned(), "Statement", "a string, not an object"),
        (r#"{"Version":"1","Statement":[],"Id":"x"}"#.to_owned(), "Id", "no such element"),
        (r#"{"Version":"1","Version":"1","Statement":[]}"#.to_owned(), "", "\"Version\" occurs twice"),
        (statement(r#""Action":"*","Resource":"*""#), "Statement[1]", "no Effect"),
        (statement(r#""Effect":"allow","Action":"*","Resource":"*""#), "Statement[1].Effect", "\"allow\""),
        (statement(r#""Effect":"Allow","Resource":"*""#), "Statement[1]", "neither Action nor NotAction"),
        (
            statement(r#""Effect":"Allow","Action":"*","NotAction":"*","Resource":"*""#),
            "Statement[1].NotAction",
            "exactly one",
        ),
        (statement(r#""Effect":"Allow","Action":[],"Resource":"*""#), "Statement[1].Action", "empty"),
        (statement(r#""Effect":"Allow","Action":"","Resource":"*""#), "Statement[1].Action", "ehpc:GetImage"),
        (
            statement(r#""Effect":"Allow","Action":["*","GetImage"],"Resource":"*""#),
            "Statement[1].Action[1]",
            "\"GetImage\"",
        ),
        (statement(r#""Effect":"Allow","Action":[7],"Resource":"*""#), "Statement[1].Action[0]", "a number"),
        (statement(r#""Effect":"Allow","Action":"*""#), "Statement[1]", "no Resource"),
        (statement(r#""Effect":"Allow","Action":"*","Resource":"app/x""#), "Statement[1].Resource", "\"app/x\""),
        (
            statement(r#""Effect":"Allow","Action":"*","Resource":["*","acs:ehpc:app/x"]"#),
            "Statement[1].Resource[1]",
            "acs:ehpc",
        ),
        (
            statement(r#""Effect":"Allow","Action":"*","Resource":"*","Principal":"*""#),
            "Statement[1].Principal",
            "no such element",
        ),
        (condition("{}"), "Statement[1].Condition", "empty"),
        (condition("[]"), "Statement[1].Condition", "not an object"),
        (
            condition(r#"{"IpAddresses":{"acs:SourceIp":"10.0.0.0/8"}}"#),
            "Statement[1].Condition.IpAddresses",
            "no such operator",
        ),
        (condition(r#"{"IpAddress":"10.0.0.0/8"}"#), "Statement[1].Condition.IpAddress", "not an object"),
        (condition(r#"{"IpAddress":{}}"#), "Statement[1].Condition.IpAddress", "empty"),
        (
            condition(r#"{"IpAddress":{"acs:MFAPresent":"10.0.0.0/8"}}"#),
            "Statement[1].Condition.IpAddress.acs:MFAPresent",
            "acs:SourceIp",
        ),
        (
            condition(r#"{"IpAddress":{"acs:SourceIp":"10.0.0.0/33"}}"#),
            "Statement[1].Condition.IpAddress.acs:SourceIp",
            "10.0.0.0/33",
        ),
        (
            condition(r#"{"IpAddress":{"acs:SourceIp":["::1",[]]}}"#),
            "Statement[1].Condition.IpAddress.acs:SourceIp[1]",
            "a list",
        ),
        (
            condition(r#"{"StringEquals":{"acs:SourceIp":"::1"}}"#),
            "Statement[1].Condition.StringEquals.acs:SourceIp",
            "an address",
        ),
        (
            condition(r#"{"DateLessThan":{"acs:CurrentTime":"tomorrow"}}"#),
            "Statement[1].Condition.DateLessThan.acs:CurrentTime",
            "\"tomorrow\"",
        ),
        (
            condition(r#"{"Bool":{"acs:SecureTransport":"yes"}}"#),
            "Statement[1].Condition.Bool.acs:SecureTransport",
            "\"yes\"",
        ),
        (
            condition(r#"{"NumericEquals":{"corp:level":"inf"}}"#),
            "Statement[1].Condition.NumericEquals.corp:level",
            "\"inf\"",
        ),
        (condition(r#"{"Bool":{"corp:level":true},"Bool":{"corp:level":false}}"#), "", "\"Bool\" occurs twice"),
    ] {
        let error = Document::parse(&document, &keys()).expect_err(&document);
        assert_eq!(error.path, path, "{document}: {error}");
        assert!(error.problem.contains(part), "{document}: {error}");
    }
    let long = format!(r#"{{"Version":"1","Statement":[{}]}}"#, " ".repeat(65_536));
    assert!(Document::parse(&long, &keys()).expect_err("too long").problem.contains("65536 bytes"));
    let deep = format!(r#"{{"Version":"1","Statement":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    assert!(Document::parse(&deep, &keys()).is_err(), "too deep");
}
