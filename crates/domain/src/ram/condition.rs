//! Conditions of statements (RAM, "Condition operators"). A statement applies only if all of its conditions hold; a
//! condition holds if any of its values matches. A negated operator holds exactly when the plain operator does not, and
//! therefore also for a key without a value.
//!
//! A key of a call may have several values. An operator without a prefix tests the set of values: it holds if any value
//! matches, and its negation holds if none does. With `ForAnyValue:` or `ForAllValues:`, an operator tests each value
//! separately.

use std::fmt;

use super::{
    condition_values::Values,
    context::{Context, Key, Keys},
    element::{DocumentError, Element},
    operator::{OPERATORS, Operator},
};

/// The element `Condition`: all of its conditions must hold.
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

/// The values of the call for which an operator must hold (RAM, "Condition operators", set operators).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    /// No prefix: an operator must hold for any value, a negated one for all values.
    Unspecified,
    /// `ForAnyValue:`: at least one value. Does not hold for a key without a value.
    Any,
    /// `ForAllValues:`: all values. Holds for a key without a value.
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
