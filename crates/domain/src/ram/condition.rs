//! Conditions of statements (RAM, "Condition operators"). A statement applies only if all of its conditions hold; a
//! condition holds if any of its values matches. A negated operator holds exactly where the operator without the
//! negation does not, so that it holds for a key without a value.
//!
//! A key of a call may have several values. An operator alone is about their set: it holds if any of them matches, and
//! its negation if none does. `ForAnyValue:` and `ForAllValues:` test each value of the call by itself.

use std::fmt;

use super::{
    condition_values::Values,
    context::{Context, Key, Keys},
    element::{DocumentError, Element},
    operator::{OPERATORS, Operator},
};

/// The element `Condition`: all of its conditions have to hold.
#[derive(Debug, Clone, Default)]
pub struct Conditions(Vec<Condition>);

/// An operator with a key and values.
#[derive(Debug, Clone)]
pub struct Condition {
    quantifier: Quantifier,
    operator: &'static Operator,
    key: Key,
    values: Values,
}

/// For which of the call's values an operator has to hold (RAM, "Condition operators", set operators).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    /// No prefix: an operator has to hold for any value, a negated one for all.
    Unspecified,
    /// `ForAnyValue:`, at least one. Does not hold for a key without a value.
    Any,
    /// `ForAllValues:`, all. Holds for a key without a value.
    All,
}

impl Quantifier {
    /// Splits the name of an operator into its quantifier and the rest.
    fn split(name: &str) -> (Self, &str) {
        let quantified = [Self::Any, Self::All].into_iter();
        let mut split = quantified.filter_map(|quantifier| Some((quantifier, name.strip_prefix(quantifier.prefix())?)));
        split.next().unwrap_or((Self::Unspecified, name))
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Any => "ForAnyValue:",
            Self::All => "ForAllValues:",
        }
    }
}

impl Conditions {
    pub fn compile(element: Element<'_>, keys: &Keys) -> Result<Self, DocumentError> {
        let mut conditions = Vec::new();
        for (name, members) in element.some_members()? {
            let (quantifier, name) = Quantifier::split(name);
            let operator = OPERATORS.iter().find(|operator| operator.name == name).ok_or_else(|| {
                let names = OPERATORS.map(|operator| operator.name).join(", ");
                members.error(format_args!(
                    "there is no such operator; supported are {names}, each also with ForAnyValue: or ForAllValues: before it"
                ))
            })?;
            for (name, values) in members.some_members()? {
                let key = keys.find(name).ok_or_else(|| {
                    values.error(format_args!("calls to this service have no such key; supported are {}", keys.names()))
                })?;
                operator.check_key(&key, values)?;
                let values = Values::compile(operator.test, values)?;
                conditions.push(Condition { quantifier, operator, key, values });
            }
        }
        Ok(Self(conditions))
    }

    /// Returns the first condition that does not hold.
    pub fn unmet(&self, context: &Context<'_>) -> Option<&Condition> {
        self.0.iter().find(|condition| !condition.holds(context))
    }
}

impl Condition {
    fn holds(&self, context: &Context<'_>) -> bool {
        let mut values = context.values(&self.key);
        let negated = self.operator.negated;
        match self.quantifier {
            Quantifier::Unspecified => values.any(|value| self.values.matches(value)) != negated,
            Quantifier::Any => values.any(|value| self.values.matches(value) != negated),
            Quantifier::All => values.all(|value| self.values.matches(value) != negated),
        }
    }

    /// Explains why the condition does not hold: its key, and the call's values.
    pub fn explain(&self, context: &Context<'_>) -> String {
        let values = context.values(&self.key).map(|value| value.to_string()).collect::<Vec<_>>();
        match &values[..] {
            [] => format!("{self} does not hold: the call has no value"),
            values => format!("{self} does not hold: it is {}", values.join(" and ")),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition.{}{}.{}", self.quantifier.prefix(), self.operator.name, self.key)
    }
}
