//! Policy documents and their evaluation: an explicit Deny wins, then an Allow, else it is denied (RAM, "Policy evaluation").

use std::{fmt, sync::Arc};

use serde::Deserialize;

use super::{ALL_RESOURCES, pattern::matches};

/// What a statement does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies, whatever allows.
    Deny,
}

/// A policy document, compiled.
#[derive(Debug, Clone)]
pub struct Document {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone)]
struct Statement {
    effect: Effect,
    /// In lower case: RAM takes no notice of the case of actions.
    actions: Vec<String>,
    /// Whether it applies to all actions but these.
    inverted: bool,
    resources: Vec<String>,
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is no JSON of the right form.
    #[error("{0}")]
    Malformed(String),
    /// It is of another version.
    #[error("Version: {0:?} is not \"1\"")]
    Version(String),
    /// A statement has both an Action and a `NotAction`, or neither.
    #[error("Statement[{0}]: exactly one of Action and NotAction is needed")]
    Action(usize),
    /// A list is empty, or has an empty entry.
    #[error("Statement[{statement}].{key}: it is empty")]
    Empty {
        /// The statement's place.
        statement: usize,
        /// The key.
        key: &'static str,
    },
    /// A condition, which this version does not evaluate. To ignore it could allow what it forbids.
    #[error("Statement[{0}].Condition: conditions are not supported by this version")]
    Condition(usize),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct RawDocument {
    version: String,
    statement: OneOrMore<RawStatement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct RawStatement {
    effect: Effect,
    action: Option<OneOrMore<String>>,
    not_action: Option<OneOrMore<String>>,
    resource: OneOrMore<String>,
    condition: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    More(Vec<T>),
    One(T),
}

impl<T> From<OneOrMore<T>> for Vec<T> {
    fn from(value: OneOrMore<T>) -> Self {
        match value {
            OneOrMore::More(values) => values,
            OneOrMore::One(value) => vec![value],
        }
    }
}

impl std::str::FromStr for Document {
    type Err = DocumentError;

    fn from_str(text: &str) -> Result<Self, DocumentError> {
        let raw: RawDocument =
            serde_json::from_str(text).map_err(|error| DocumentError::Malformed(error.to_string()))?;
        if raw.version != "1" {
            return Err(DocumentError::Version(raw.version));
        }
        let statements: Vec<RawStatement> = raw.statement.into();
        let statements = statements.into_iter().enumerate().map(|(place, raw)| Statement::compile(place, raw));
        Ok(Self { statements: statements.collect::<Result<_, _>>()? })
    }
}

impl Statement {
    fn compile(place: usize, raw: RawStatement) -> Result<Self, DocumentError> {
        if raw.condition.is_some() {
            return Err(DocumentError::Condition(place));
        }
        let (actions, inverted, key) = match (raw.action, raw.not_action) {
            (Some(actions), None) => (actions, false, "Action"),
            (None, Some(actions)) => (actions, true, "NotAction"),
            _ => return Err(DocumentError::Action(place)),
        };
        let actions: Vec<String> = Vec::from(actions).into_iter().map(|a| a.to_ascii_lowercase()).collect();
        let resources: Vec<String> = raw.resource.into();
        for (key, values) in [(key, &actions), ("Resource", &resources)] {
            if values.is_empty() || values.iter().any(String::is_empty) {
                return Err(DocumentError::Empty { statement: place, key });
            }
        }
        Ok(Self { effect: raw.effect, actions, inverted, resources })
    }

    fn applies(&self, action: &str, resource: &str) -> bool {
        let named = self.actions.iter().any(|pattern| matches(pattern.as_bytes(), action.as_bytes()));
        named != self.inverted && self.resources.iter().any(|pattern| covers(pattern, resource))
    }
}

/// Whether a statement's resource covers that of a call. An action on all resources is covered by `*` alone: a narrower
/// pattern neither grants nor denies it.
fn covers(pattern: &str, resource: &str) -> bool {
    if resource == ALL_RESOURCES {
        pattern.bytes().all(|b| b == b'*')
    } else {
        matches(pattern.as_bytes(), resource.as_bytes())
    }
}

/// A named policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// What it says.
    pub document: Document,
}

/// The statement that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementRef {
    /// The policy's name.
    pub policy: Arc<str>,
    /// The statement's place in it.
    pub statement: usize,
}

/// Whether a call is allowed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows it and none denies it.
    Allowed(StatementRef),
    /// A statement denies it.
    Denied(StatementRef),
    /// No statement applies.
    NotAllowed,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(by) => write!(f, "Statement[{}] of {} allows it", by.statement, by.policy),
            Self::Denied(by) => write!(f, "Statement[{}] of {} denies it", by.statement, by.policy),
            Self::NotAllowed => f.write_str("no statement allows it"),
        }
    }
}

/// The policies of a principal.
#[derive(Debug, Clone, Default)]
pub struct Policies(pub Vec<Arc<Policy>>);

impl Policies {
    /// Decides about an action on a resource, [`ALL_RESOURCES`] for one on all of them.
    #[must_use]
    pub fn decide(&self, action: &str, resource: &str) -> Decision {
        let action = action.to_ascii_lowercase();
        let mut allowed = None;
        for policy in &self.0 {
            for (place, statement) in policy.document.statements.iter().enumerate() {
                if !statement.applies(&action, resource) {
                    continue;
                }
                let found = || StatementRef { policy: Arc::clone(&policy.name), statement: place };
                match statement.effect {
                    Effect::Deny => return Decision::Denied(found()),
                    Effect::Allow => {
                        allowed.get_or_insert_with(found);
                    }
                }
            }
        }
        allowed.map_or(Decision::NotAllowed, Decision::Allowed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Decision, Document, DocumentError, Policies, Policy};

    const SYNC: &str = "ehpc:SynchronizeApp";
    const APP: &str = "acs:ehpc:*:*:app/ci-vm-1";

    fn decide(statements: &str, action: &str, resource: &str) -> Decision {
        let text = format!(r#"{{"Version":"1","Statement":[{statements}]}}"#);
        let document: Document = text.parse().expect("a document");
        Policies(vec![Arc::new(Policy { name: "p".into(), document })]).decide(action, resource)
    }

    fn allows(statements: &str, action: &str, resource: &str) -> bool {
        matches!(decide(statements, action, resource), Decision::Allowed(_))
    }

    #[test]
    fn nothing_is_allowed_that_no_statement_allows() {
        assert_eq!(Policies::default().decide(SYNC, "*"), Decision::NotAllowed);
        assert!(allows(r#"{"Effect":"Allow","Action":"ehpc:SynchronizeApp","Resource":"*"}"#, SYNC, "*"));
        assert!(!allows(r#"{"Effect":"Allow","Action":"ehpc:GetImage","Resource":"*"}"#, SYNC, "*"));
    }

    #[test]
    fn actions_have_wildcards_and_no_case() {
        for action in ["*", "ehpc:*", "EHPC:synchronizeapp", "ehpc:Synchronize???", "ehpc:*App"] {
            assert!(
                allows(&format!(r#"{{"Effect":"Allow","Action":["x","{action}"],"Resource":["*"]}}"#), SYNC, "*"),
                "{action}"
            );
        }
        assert!(!allows(r#"{"Effect":"Allow","Action":"ehpc:Synchronize??","Resource":"*"}"#, SYNC, "*"));
    }

    #[test]
    fn not_action_is_everything_else() {
        let but_remove = r#"{"Effect":"Allow","NotAction":"ehpc:Remove*","Resource":"*"}"#;
        assert!(allows(but_remove, SYNC, "*"));
        assert!(!allows(but_remove, "ehpc:RemoveImage", APP));
    }

    #[test]
    fn an_explicit_deny_wins_wherever_it_stands() {
        let allow = r#"{"Effect":"Allow","Action":"*","Resource":"*"}"#;
        let deny = r#"{"Effect":"Deny","Action":"ehpc:Sync*","Resource":"*"}"#;
        for both in [format!("{allow},{deny}"), format!("{deny},{allow}")] {
            assert!(matches!(decide(&both, SYNC, "*"), Decision::Denied(_)));
            assert!(allows(&both, "ehpc:GetImage", APP));
        }
    }

    #[test]
    fn an_action_on_all_resources_heeds_no_narrower_statement() {
        for narrow in ["acs:ehpc:*:*:app/*", "acs:*", "?", "acs:ehpc:cn-hangzhou:1234:app/x"] {
            let allow = format!(r#"{{"Effect":"Allow","Action":"*","Resource":"{narrow}"}}"#);
            assert!(!allows(&allow, SYNC, "*"), "{narrow} granted");
            let deny = format!(
                r#"{{"Effect":"Deny","Action":"*","Resource":"{narrow}"}},{{"Effect":"Allow","Action":"*","Resource":"*"}}"#
            );
            assert!(allows(&deny, SYNC, "*"), "{narrow} denied");
        }
    }

    #[test]
    fn a_resource_is_matched_with_its_case() {
        let one = r#"{"Effect":"Allow","Action":"ehpc:GetImage","Resource":"acs:ehpc:*:*:app/ci-vm-*"}"#;
        assert!(allows(one, "ehpc:GetImage", APP));
        assert!(!allows(one, "ehpc:GetImage", "acs:ehpc:*:*:app/CI-VM-1"));
    }

    #[test]
    fn a_faulty_document_is_refused_with_its_fault() {
        let parse = |text: &str| text.parse::<Document>().expect_err(text);
        let statement = |s: &str| parse(&format!(r#"{{"Version":"1","Statement":[{s}]}}"#));
        assert_eq!(parse(r#"{"Version":"2","Statement":[]}"#), DocumentError::Version("2".into()));
        assert!(matches!(parse("{"), DocumentError::Malformed(_)));
        assert!(matches!(statement(r#"{"Effect":"Maybe","Action":"*","Resource":"*"}"#), DocumentError::Malformed(_)));
        assert_eq!(statement(r#"{"Effect":"Allow","Resource":"*"}"#), DocumentError::Action(0));
        assert_eq!(
            statement(r#"{"Effect":"Allow","Action":"*","NotAction":"*","Resource":"*"}"#),
            DocumentError::Action(0)
        );
        assert_eq!(
            statement(r#"{"Effect":"Allow","Action":[],"Resource":"*"}"#),
            DocumentError::Empty { statement: 0, key: "Action" }
        );
        assert_eq!(
            statement(r#"{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"a":"b"}}}"#),
            DocumentError::Condition(0)
        );
    }
}
