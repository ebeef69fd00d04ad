//! Random policies and calls. Their vocabulary is so small that policies often match calls.

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Map, Value, json};

use super::naive::Call;

pub const CLAIMS: [&str; 2] = ["corp:team", "corp:level"];

const ACTIONS: [&str; 5] =
    ["ehpc:SynchronizeApp", "ehpc:GetImage", "ehpc:RemoveImage", "ehpc:ListImages", "ecs:CopyImage"];
const ACTION_PATTERNS: [&str; 10] = [
    "*",
    "ehpc:*",
    "EHPC:synchronizeapp",
    "ehpc:Get*",
    "ehpc:*Image",
    "ehpc:?etImage",
    "ecs:*",
    "e*:*I*e*",
    "ehpc:List*s",
    "ehpc:RemoveImage",
];
const RESOURCES: [&str; 6] = [
    "*",
    "acs:ehpc:*:*:app/ci-vm-1",
    "acs:ehpc:*:*:app/gromacs-2",
    "acs:ehpc:cn-hangzhou:1234:app/ci-vm-1",
    "acs:ehpc:*:*:app/é:1",
    "acs:ehpc:*:*:app/CI-VM-1",
];
const RESOURCE_PATTERNS: [&str; 9] = [
    "*",
    "**",
    "acs:ehpc:*:*:app/*",
    "acs:ehpc:*:*:app/ci-vm-?",
    "acs:*:*:*:app/gro*",
    "acs:ehpc:cn-hangzhou:*:*",
    "acs:ehpc:*:1234:app/*-1",
    "acs:ehpc:*:*:app/?:1",
    "acs:ecs:*:*:*",
];
const ADDRESSES: [&str; 6] = ["10.1.2.3", "10.255.0.1", "192.168.0.1", "::ffff:10.1.2.3", "fd00::1", "fe80::1"];
const NETWORKS: [&str; 8] =
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "0.0.0.0/0", "fd00::/8", "::/0", "192.168.0.0/31", "fd00::1"];
const TIMES: [&str; 6] = [
    "2026-11-25T08:00:00Z",
    "2026-11-25T16:00:00+08:00",
    "2024-02-29T23:59:59Z",
    "2026-11-25T07:59:59Z",
    "2026-12-31T23:59:59-05:00",
    "2027-01-01T00:00:00Z",
];
const TEXTS: [&str; 7] = ["hpc", "HPC", "hpc-é", "hpc-É", "ops", "", "h?c"];
const TEXT_PATTERNS: [&str; 7] = ["hpc*", "*", "?pc", "hpc-?", "h*c", "ops", "**s"];
const NUMBERS: [&str; 7] = ["1", "1.0", "-3", "2.5", "10", "1e1", "many"];
const PRINCIPALS: [&str; 3] = ["acs:ram::1234:user/ops", "acs:ram::1234:role/ci", "acs:ram::99:user/ops"];
const PRINCIPAL_PATTERNS: [&str; 4] = ["acs:ram::1234:*", "*/ops", "acs:ram::*:role/c?", "acs:ram::1234:user/ops"];

const STRINGS: [&str; 6] = [
    "StringEquals",
    "StringNotEquals",
    "StringEqualsIgnoreCase",
    "StringNotEqualsIgnoreCase",
    "StringLike",
    "StringNotLike",
];
const ORDERS: [&str; 6] = ["Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals"];

fn one<'a>(rng: &mut StdRng, words: &[&'a str]) -> &'a str {
    words.choose(rng).expect("there are some")
}

/// Returns a random word, or a list of one to three random words.
fn some(rng: &mut StdRng, words: &[&str]) -> Value {
    if rng.random_bool(0.5) {
        return json!(one(rng, words));
    }
    let count = rng.random_range(1..=3);
    Value::Array((0..count).map(|_| json!(one(rng, words))).collect())
}

fn condition(rng: &mut StdRng) -> (String, &'static str, Value) {
    let order = |rng: &mut StdRng, family: &str| format!("{family}{}", one(rng, &ORDERS));
    match rng.random_range(0..6) {
        0 => (one(rng, &["IpAddress", "NotIpAddress"]).to_owned(), "acs:SourceIp", some(rng, &NETWORKS)),
        1 => (order(rng, "Date"), "acs:CurrentTime", some(rng, &TIMES)),
        2 => {
            let value = [json!("true"), json!("false"), json!(true), json!(["true", false])];
            ("Bool".to_owned(), "acs:SecureTransport", value.choose(rng).expect("one").clone())
        }
        3 => {
            let words: Vec<&str> = PRINCIPALS.into_iter().chain(PRINCIPAL_PATTERNS).collect();
            (one(rng, &STRINGS).to_owned(), "acs:PrincipalARN", some(rng, &words))
        }
        4 => {
            let words: Vec<&str> = TEXTS.into_iter().chain(TEXT_PATTERNS).collect();
            (one(rng, &STRINGS).to_owned(), "corp:team", some(rng, &words))
        }
        _ => {
            let value = if rng.random_bool(0.3) { json!(rng.random_range(-4..12)) } else { some(rng, &NUMBERS[..6]) };
            (order(rng, "Numeric"), "corp:level", value)
        }
    }
}

pub fn statement(rng: &mut StdRng, effect: &str) -> Value {
    let mut statement = Map::new();
    statement.insert("Effect".into(), json!(effect));
    let key = if rng.random_bool(0.2) { "NotAction" } else { "Action" };
    statement.insert(key.into(), some(rng, &ACTION_PATTERNS));
    statement.insert("Resource".into(), some(rng, &RESOURCE_PATTERNS));
    if rng.random_bool(0.6) {
        let mut operators = Map::new();
        for _ in 0..rng.random_range(1..=3) {
            let (operator, key, values) = condition(rng);
            let set = if rng.random_bool(0.4) { one(rng, &["ForAnyValue:", "ForAllValues:"]) } else { "" };
            let operator = format!("{set}{operator}");
            let keys = operators.entry(operator).or_insert_with(|| json!({}));
            keys[key] = values;
        }
        statement.insert("Condition".into(), Value::Object(operators));
    }
    Value::Object(statement)
}

pub fn document(rng: &mut StdRng) -> Value {
    let count = rng.random_range(1..=3);
    let mut statements: Vec<Value> = (0..count)
        .map(|_| {
            let effect = if rng.random_bool(0.35) { "Deny" } else { "Allow" };
            statement(rng, effect)
        })
        .collect();
    let statements = if count == 1 && rng.random_bool(0.5) { statements.remove(0) } else { Value::Array(statements) };
    json!({ "Version": "1", "Statement": statements })
}

pub fn call(rng: &mut StdRng) -> Call {
    let mut context = Vec::new();
    let all: [(&str, &[&str]); 6] = [
        ("acs:SourceIp", &ADDRESSES),
        ("acs:CurrentTime", &TIMES),
        ("acs:SecureTransport", &["true", "false"]),
        ("acs:PrincipalARN", &PRINCIPALS),
        ("corp:team", &TEXTS),
        ("corp:level", &NUMBERS),
    ];
    for (key, words) in all {
        // A claim may have several values, other keys have at most one.
        let count = if CLAIMS.contains(&key) { rng.random_range(0..=3) } else { u32::from(rng.random_bool(0.85)) };
        context.extend((0..count).map(|_| (key.to_owned(), one(rng, words).to_owned())));
    }
    Call { action: one(rng, &ACTIONS).to_owned(), resource: one(rng, &RESOURCES).to_owned(), context }
}
