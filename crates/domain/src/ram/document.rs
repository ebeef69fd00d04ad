//! Policy documents, parsed and compiled (RAM, "Policy structure and syntax").

use super::{
    condition::Conditions,
    context::Keys,
    element::{DocumentError, Element},
    json::Json,
    statement::{Actions, Effect, Resources, Statement},
};

/// Maximum length of a document, in bytes. RAM's own limit is 6,144 characters.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 10;

/// A compiled policy document.
#[derive(Debug, Clone)]
pub struct Document {
    pub(super) statements: Vec<Statement>,
}

impl Document {
    /// Whether the document has a Deny statement.
    #[must_use]
    pub fn denies(&self) -> bool {
        self.statements.iter().any(|statement| statement.effect == Effect::Deny)
    }

    /// Parses a document whose conditions may use `keys`.
    ///
    /// # Errors
    ///
    /// Fails if the document is malformed. The error names the path of the element.
    pub fn parse(text: &str, keys: &Keys) -> Result<Self, DocumentError> {
        let whole = |problem: String| DocumentError { path: String::new(), problem };
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(whole(format!("it is longer than {MAX_DOCUMENT_BYTES} bytes")));
        }
        let json: Json = serde_json::from_str(text).map_err(|error| whole(error.to_string()))?;
        let document = Element::document(&json);
        let [version, statements] = document.members_named(["Version", "Statement"])?;
        let version = document.require("Version", version)?;
        if version.text()? != "1" {
            return Err(version.error(format_args!("{:?} is not \"1\"", version.text()?)));
        }
        let statements = document.require("Statement", statements)?;
        let statements = statements.entries()?.map(|one| statement(one, keys)).collect::<Result<_, _>>()?;
        Ok(Self { statements })
    }
}

fn statement(element: Element<'_>, keys: &Keys) -> Result<Statement, DocumentError> {
    let [effect, action, not_action, resource, condition] =
        element.members_named(["Effect", "Action", "NotAction", "Resource", "Condition"])?;
    let effect = element.require("Effect", effect)?;
    let effect = match effect.text()? {
        "Allow" => Effect::Allow,
        "Deny" => Effect::Deny,
        other => return Err(effect.error(format_args!("{other:?} is neither \"Allow\" nor \"Deny\""))),
    };
    let actions = match (action, not_action) {
        (Some(action), None) => Actions::compile(action, false)?,
        (None, Some(not_action)) => Actions::compile(not_action, true)?,
        (Some(_), Some(not_action)) => {
            return Err(not_action.error("it conflicts with Action; exactly one of the two is required"));
        }
        (None, None) => return Err(element.error("it has neither Action nor NotAction; exactly one is required")),
    };
    let resources = Resources::compile(element.require("Resource", resource)?)?;
    let conditions = condition.map(|condition| Conditions::compile(condition, keys)).transpose()?.unwrap_or_default();
    Ok(Statement { effect, actions, resources, conditions })
}
