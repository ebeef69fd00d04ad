//! A malicious challenge from a registry does not affect later requests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use appferry::storage::{Error, Source as _, Store as _};

use super::{MANIFEST, answer, hostile, manifest, name, store, trap};
use crate::harness::proxy::{Action, ReceivedRequest};

/// A registry that requires its own token.
fn honest(request: &ReceivedRequest) -> Action {
    if request.path.starts_with("/token") {
        return answer(200, vec![], r#"{"token":"good"}"#);
    }
    if request.authorization.as_deref() != Some("Bearer good") {
        return answer(401, vec![("www-authenticate", "Bearer realm=\"/token\",service=\"x\"".to_owned())], "");
    }
    let headers = vec![
        ("content-type", MANIFEST.to_owned()),
        ("docker-content-digest", manifest(b"{}").digest.to_string()),
        ("content-length", "2".to_owned()),
    ];
    answer(200, headers, if request.method == http::Method::HEAD { "" } else { "{}" })
}

#[tokio::test]
async fn one_bad_answer_spoils_no_request_after_it() {
    let (trap, _) = trap().await;
    for challenge in [
        format!("Bearer realm=\"http://{}/token\"", trap.address),
        "Bearer realm=\"http://\"".to_owned(),
        "Bearer realm=\"/token-that-is-none\"".to_owned(),
        "Bearer realm=\"https://169.254.169.254/token\"".to_owned(),
        format!("Bearer realm=\"{}\"", "x".repeat(60_000)),
        "Bearer".to_owned(),
        "Basic realm=\"x\"".to_owned(),
        "Negotiate".to_owned(),
        String::new(),
    ] {
        // The registry sends the malicious challenge in its first and its fifth response, before and after it accepts a
        // valid token. Responses of the token server do not count.
        let count = Arc::<AtomicUsize>::default();
        let (said, counted) = (challenge.clone(), Arc::clone(&count));
        let proxy = hostile(move |request| {
            if request.path.starts_with("/token-that-is-none") {
                return answer(404, vec![], "");
            }
            let lies = !request.path.starts_with("/token") && matches!(counted.fetch_add(1, Ordering::Relaxed), 0 | 4);
            if lies { answer(401, vec![("www-authenticate", said.clone())], "") } else { honest(request) }
        })
        .await;
        let store = store(&proxy);
        let mut refused = 0;
        while count.load(Ordering::Relaxed) < 8 {
            let before = count.load(Ordering::Relaxed);
            match store.root(&name()).await {
                Ok(root) => assert_eq!(root.expect("it is there").digest, manifest(b"{}").digest),
                Err(_) => refused += 1,
            }
            assert!(count.load(Ordering::Relaxed) > before, "{challenge}: it is not asked again");
        }
        assert!(refused <= 2, "{challenge}: {refused} requests failed, of two with a malicious challenge");
        store.root(&name()).await.expect("it is valid again");
    }
    assert_eq!(trap.requests().len(), 0, "the host is not contacted");
}

/// A token server becomes unavailable for a while after it has issued a token.
#[tokio::test]
async fn a_realm_that_goes_away_is_asked_for_again() {
    let (away, realm) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (is_away, moved) = (Arc::clone(&away), Arc::clone(&realm));
    let proxy = hostile(move |request| {
        let realm = moved.load(Ordering::Relaxed);
        let token = format!("Bearer good-{realm}");
        if let Some(asked) = request.path.strip_prefix("/token") {
            let right = asked.starts_with(&realm.to_string()) && is_away.load(Ordering::Relaxed) == 0;
            let body = format!("{{\"token\":\"good-{realm}\"}}");
            return if right { answer(200, vec![], &body) } else { answer(404, vec![], "") };
        }
        if request.authorization.as_deref() == Some(&token) {
            return honest(&ReceivedRequest { authorization: Some("Bearer good".into()), ..request.clone() });
        }
        answer(401, vec![("www-authenticate", format!("Bearer realm=\"/token{realm}\""))], "")
    })
    .await;
    let store = store(&proxy);
    store.root(&name()).await.expect("it is there");
    // The next 401 names another realm.
    realm.store(1, Ordering::Relaxed);
    store.root(&name()).await.expect("it has a Location");
    away.store(1, Ordering::Relaxed);
    realm.store(2, Ordering::Relaxed);
    let refused = store.root(&name()).await;
    assert!(matches!(refused, Err(Error::Status { .. })), "{refused:?}");
    assert!(store.probe().await.is_err());
    away.store(0, Ordering::Relaxed);
    store.root(&name()).await.expect("the realm responds again");
}
