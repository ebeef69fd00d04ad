//! Compares the decisions of the two policy evaluators, and checks algebraic laws of decisions.

use std::{net::IpAddr, sync::Arc};

use appferry::{
    domain::Timestamp,
    ram::{AttachedPolicy, Attachment, Claim, Context, Decision, Document, Effect, Keys, Policies, Policy, Request},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde_json::{Value, json};

use super::{
    generate,
    naive::{self, Call, Outcome},
};

/// Number of calls per set of random policies.
const CALLS: usize = 100;
/// Number of these calls that are also decided with an additional statement and with the policies in another order.
const LAWS: usize = 5;

/// Returns the condition keys of the random policies.
pub fn keys() -> Keys {
    Keys::with_claims(generate::CLAIMS.map(Into::into))
}

/// Compiles policies for the service's evaluator.
pub fn compile(documents: &[Value]) -> Policies {
    let attached = documents.iter().enumerate().map(|(place, document)| {
        let read = Document::parse(&document.to_string(), &keys()).unwrap_or_else(|e| panic!("{e}: {document}"));
        let policy = Arc::new(Policy { name: format!("p{place}").into(), document: read });
        AttachedPolicy { policy, to: Attachment::Principal }
    });
    Policies(attached.collect())
}

/// A call, converted to the types of the service's evaluator.
pub struct Typed<'c> {
    call: &'c Call,
    claims: Vec<Claim>,
}

impl<'c> Typed<'c> {
    pub fn of(call: &'c Call) -> Self {
        let claims = call.context.iter().filter(|(key, _)| !key.starts_with("acs:"));
        let claims = claims.map(|(key, value)| Claim { name: key.as_str().into(), value: value.clone() });
        Self { call, claims: claims.collect() }
    }

    fn context(&self) -> Context<'_> {
        let find = |name: &str| self.call.context.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        Context {
            source_ip: find("acs:SourceIp").map(|text| text.parse::<IpAddr>().expect("an address")),
            current_time: find("acs:CurrentTime").map(|text| Timestamp::parse(text).expect("a time")),
            secure_transport: find("acs:SecureTransport").map(|text| text == "true"),
            principal: find("acs:PrincipalARN"),
            claims: &self.claims,
        }
    }

    /// Returns the decision of the service's evaluator, after checking that the explanation matches it.
    pub fn judged_by(&self, policies: &Policies) -> Outcome {
        let context = self.context();
        let request = Request { action: &self.call.action, resource: &self.call.resource, context: &context };
        let decision = policies.decide(&request);
        let explained = policies.explain(&request);
        // The statements that the explanation reports as applicable must lead to the same decision.
        let applies = |effect| explained.iter().any(|reason| reason.mismatch.is_none() && reason.effect == effect);
        match decision {
            Decision::Allowed(_) => {
                assert!(applies(Effect::Allow) && !applies(Effect::Deny));
                Outcome::Allowed
            }
            Decision::Denied(_) => {
                assert!(applies(Effect::Deny));
                Outcome::Denied
            }
            Decision::NotAllowed => {
                assert!(explained.iter().all(|reason| reason.mismatch.is_some()));
                Outcome::NotAllowed
            }
        }
    }

    /// Returns the decision without checking its explanation, because an explanation is slow.
    fn decided_by(&self, policies: &Policies) -> Outcome {
        let context = self.context();
        match policies.decide(&Request { action: &self.call.action, resource: &self.call.resource, context: &context })
        {
            Decision::Allowed(_) => Outcome::Allowed,
            Decision::Denied(_) => Outcome::Denied,
            Decision::NotAllowed => Outcome::NotAllowed,
        }
    }
}

/// Decides random calls by random policies with both evaluators, and returns the first difference, if any. `plant` may
/// inject a fault into the input of the service's evaluator.
pub fn compare(seed: u64, tuples: usize, plant: impl Fn(&Value) -> Value) -> Option<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut judged = 0;
    while judged < tuples {
        let documents: Vec<Value> = (0..rng.random_range(1..=3)).map(|_| generate::document(&mut rng)).collect();
        let policies = compile(&documents.iter().map(&plant).collect::<Vec<_>>());
        let effect = if rng.random_bool(0.5) { "Deny" } else { "Allow" };
        let more = json!({ "Version": "1", "Statement": generate::statement(&mut rng, effect) });
        let with_more = compile(&documents.iter().chain([&more]).cloned().collect::<Vec<_>>());
        let mut shuffled = policies.clone();
        shuffled.0.shuffle(&mut rng);
        for n in 0..CALLS {
            let call = generate::call(&mut rng);
            let typed = Typed::of(&call);
            let (decided, expected) = (typed.decided_by(&policies), naive::decide(&documents, &call));
            if decided != expected {
                return Some(format!("{decided:?} instead of {expected:?}: {call:?} by {}", json!(documents)));
            }
            if n < LAWS {
                let after = typed.judged_by(&with_more);
                match effect {
                    "Deny" => {
                        assert!(after != Outcome::Allowed || decided == Outcome::Allowed, "a Deny granted: {more}");
                    }
                    _ => assert!(after == decided || decided == Outcome::NotAllowed, "an Allow took away: {more}"),
                }
                assert_eq!(typed.judged_by(&shuffled), decided, "the order matters");
            }
        }
        judged += CALLS;
    }
    None
}
