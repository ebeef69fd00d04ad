//! Fuzz target for policy documents: parsing never panics, and decisions by an accepted document are deterministic.

use std::sync::Arc;

use appferry::{
    domain::Timestamp,
    ram::{AttachedPolicy, Attachment, Claim, Context, Document, Effect, Keys, Policies, Policy, Request},
};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let keys = Keys::with_claims(["corp:team".into(), "corp:level".into()]);
    let document = match Document::parse(text, &keys) {
        Ok(document) => document,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let policy = Arc::new(Policy { name: "p".into(), document });
    let policies = Policies(vec![AttachedPolicy { policy, to: Attachment::Principal }]);
    let claims = [("corp:team", "hpc"), ("corp:level", "5")];
    let claims = claims.map(|(name, value)| Claim { name: name.into(), value: value.into() });
    let context_with_keys = Context {
        source_ip: Some([10, 1, 2, 3].into()),
        current_time: Some(Timestamp::from_millis(1_800_000_000_000)),
        secure_transport: Some(true),
        principal: Some("acs:ram::1234:user/ops"),
        claims: &claims,
    };
    for context in [context_with_keys, Context::default()] {
        for resource in ["*", "acs:ehpc:*:*:app/ci-vm-1"] {
            let request = Request { action: "ehpc:SynchronizeApp", resource, context: &context };
            let (decision, reasons) = (policies.decide(&request), policies.explain(&request));
            let applies = |effect| reasons.iter().any(|reason| reason.effect == effect && reason.mismatch.is_none());
            assert_eq!(decision.is_allowed(), applies(Effect::Allow) && !applies(Effect::Deny));
        }
    }
}
