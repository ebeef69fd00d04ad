//! Policy documents, read once and for all (RAM, "Policy structure and syntax").

use super::{
    condition::Conditions,
    context::Keys,
    element::{DocumentError, Element},
    json::Json,
    statement::{Actions, Effect, Resources, Statement},
};

/// The longest document, in bytes. RAM's own limit is 6,144 characters.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 10;

/// A policy document, compiled.
#[derive(Debug, Clone)]
pub struct Document {
    pub(super) statements: Vec<Statement>,
}

impl Document {
    /// Whether it denies anything.
    #[must_use]
    pub fn denies(&self) -> bool {
        self.statements.iter().any(|statement| statement.effect == Effect::Deny)
    }

    /// Reads a document that may speak of these keys.
    pub fn parse(text: &str, keys: &Keys) -> Result<Self, DocumentError> {
        let whole = |problem: String| DocumentError { path: String::new(), problem };
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(whole(format!("it is longer than {MAX_DOCUMENT_BYTES} bytes")));
        }
        let json: Json = serde_json::from_str(text).map_err(|error| whole(error.to_string()))?;
        let document = Element::document(&json);
        let [version, statements] = document.members_named(["Version", "Statement"])?;
        let version = document.need("Version", version)?;
        if version.text()? != "1" {
            return Err(version.fault(format_args!("{:?} is not \"1\"", version.text()?)));
        }
        let statements = document.need("Statement", statements)?;
        let statements = statements.entries()?.map(|one| statement(one, keys)).collect::<Result<_, _>>()?;
        Ok(Self { statements })
    }
}

fn statement(element: Element<'_>, keys: &Keys) -> Result<Statement, DocumentError> {
    let [effect, action, not_action, resource, condition] =
        element.members_named(["Effect", "Action", "NotAction", "Resource", "Condition"])?;
    let effect = element.need("Effect", effect)?;
    let effect = match effect.text()? {
        "Allow" => Effect::Allow,
        "Deny" => Effect::Deny,
        other => return Err(effect.fault(format_args!("{other:?} is neither \"Allow\" nor \"Deny\""))),
    };
    let actions = match (action, not_action) {
        (Some(these), None) => Actions::compile(these, false)?,
        (None, Some(others)) => Actions::compile(others, true)?,
        (Some(_), Some(other)) => return Err(other.fault("there is an Action too; exactly one of the two is needed")),
        (None, None) => return Err(element.fault("it has neither Action nor NotAction; exactly one is needed")),
    };
    let resources = Resources::compile(element.need("Resource", resource)?)?;
    let conditions = condition.map(|condition| Conditions::compile(condition, keys)).transpose()?.unwrap_or_default();
    Ok(Statement { effect, actions, resources, conditions })
}
