//! RAM policies, tested by comparing the service's evaluator with a reference implementation.

mod compare;
mod generate;
mod naive;
mod table;

use compare::compare;
use serde_json::{Value, json};

/// Total number of compared decisions. `cargo bench --bench authorize` compares ten million.
const TUPLES: usize = 500_000;

#[test]
fn two_evaluators_agree() {
    let halves = [1, 2].map(|seed| std::thread::spawn(move || compare(seed, TUPLES / 2, Value::clone)));
    for half in halves {
        assert_eq!(half.join().expect("it ends"), None);
    }
}

/// Returns a document whose statements have been changed by `change`.
fn each(document: &Value, change: impl Fn(&mut serde_json::Map<String, Value>)) -> Value {
    let mut document = document.clone();
    match &mut document["Statement"] {
        Value::Array(statements) => statements.iter_mut().filter_map(Value::as_object_mut).for_each(change),
        one => one.as_object_mut().into_iter().for_each(change),
    }
    document
}

/// The comparison detects each of these evaluator faults. The test emulates a fault by changing the input of one
/// evaluator.
#[test]
fn a_planted_fault_is_found() {
    type Fault = (&'static str, fn(&mut serde_json::Map<String, Value>));
    let faults: [Fault; 6] = [
        ("conditions are ignored", |s| drop(s.remove("Condition"))),
        ("NotAction is read as Action", |s| {
            if let Some(others) = s.remove("NotAction") {
                s.insert("Action".into(), others);
            }
        }),
        ("Deny does not win", |s| drop(s.insert("Effect".into(), json!("Allow")))),
        ("only the first value counts", |s| {
            if let Some(Value::Array(resources)) = s.get_mut("Resource") {
                resources.truncate(1);
            }
        }),
        ("a negation is ignored", |s| {
            let Some(Value::Object(operators)) = s.get_mut("Condition") else { return };
            if let Some(keys) = operators.remove("StringNotLike") {
                operators.insert("StringLike".into(), keys);
            }
        }),
        ("a narrow resource stands for all", |s| {
            if s["Resource"] == json!("acs:ehpc:*:*:app/*") {
                s.insert("Resource".into(), json!("*"));
            }
        }),
    ];
    for (name, fault) in faults {
        let difference = compare(3, 200_000, |document| each(document, fault));
        assert!(difference.is_some(), "{name}: not found");
    }
}
