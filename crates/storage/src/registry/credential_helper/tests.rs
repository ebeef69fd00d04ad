//! Tests of well-behaved and of misbehaving helpers. Each helper is a script in a directory of the test.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Error, Handed, Helper, HelperCache, HelperError, Kept, LONGEST_LIFE, Program};
use crate::{Credentials, registry::learnt_life::SHORTEST_LIFE};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a helper that runs a script in the directory of the test.
    fn helper(&self, script: &str) -> Helper {
        let path = self.file("docker-credential-test");
        let script = format!("#!/bin/sh\ncd {}\n{script}\n", self.0.path().display());
        fs::write(&path, script).expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
        Helper { program: Program::At(path), server: "registry.example".into(), environment: Vec::new() }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.file("runs")).unwrap_or_default().lines().count()
    }
}

const HANDS_OUT: &str =
    r#"echo run >>runs; echo "{\"ServerURL\":\"$(cat)\",\"Username\":\"bob\",\"Secret\":\"$(cat secret)\"}""#;

fn password(password: &str) -> Credentials {
    Credentials::Password { username: "bob".into(), password: password.into() }
}

#[tokio::test]
async fn one_call_answers_all_who_wait_and_what_is_refused_is_asked_for_again() {
    let place = Place::new();
    let helper = place.helper(&format!("sleep 0.2\n{HANDS_OUT}"));
    fs::write(place.file("secret"), "one").expect("a secret");
    let cache = HelperCache::default();
    let all = futures_util::future::join_all((0..50).map(|_| cache.get(&helper))).await;
    assert!(all.iter().all(|one| *one == Ok(password("one"))), "{all:?}");
    assert_eq!(place.runs(), 1);
    fs::write(place.file("secret"), "two").expect("a secret");
    assert_eq!(cache.get(&helper).await, Ok(password("one")), "it is kept while nobody refuses it");
    for _ in 0..10 {
        cache.drop_refused(&password("one")).await;
        assert_eq!(cache.get(&helper).await, Ok(password("two")));
    }
    assert_eq!(place.runs(), 2, "what came since is not thrown away with what was refused");
}

#[tokio::test]
async fn a_token_by_its_user_name_is_an_identity_token() {
    let place = Place::new();
    let helper = place.helper(r#"echo '{"ServerURL":"x","Username":"<token>","Secret":"tok"}'"#);
    assert_eq!(HelperCache::default().get(&helper).await, Ok(Credentials::Identity("tok".into())));
}

#[tokio::test]
async fn a_helper_sees_the_variables_that_it_is_given_and_no_others() {
    let place = Place::new();
    let mut helper = place.helper(&format!("env >environment\n{HANDS_OUT}"));
    fs::write(place.file("secret"), "s").expect("a secret");
    // `cargo test` sets the first one.
    helper.environment = vec!["CARGO_PKG_NAME".into(), "NOT_SET".into()];
    HelperCache::default().get(&helper).await.expect("credentials");
    let environment = fs::read_to_string(place.file("environment")).expect("it was written");
    let mut names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    // The shell itself adds these.
    names.retain(|name| !matches!(*name, "PWD" | "OLDPWD" | "SHLVL" | "_"));
    names.sort_unstable();
    assert_eq!(names, ["CARGO_PKG_NAME", "HOME", "PATH"]);
}

#[tokio::test]
async fn what_a_helper_does_wrong_is_told_and_its_secret_is_not() {
    let place = Place::new();
    for (script, told, transient) in [
        ("echo 'credentials not found in native keychain'; exit 1", "log in to it with that helper", false),
        ("echo 'no AWS credentials'; exit 1", "no AWS credentials", true),
        ("exit 3", "it said nothing", true),
        ("echo '{\"Username\":\"bob\",\"Secret\":\"top-secret\"'", "is not the JSON of credentials", true),
        ("echo '[\"top-secret\"]'", "is not the JSON of credentials", true),
        ("yes top-secret", "it wrote more than 65536 bytes", true),
    ] {
        let helper = place.helper(script);
        let error = HelperCache::default().get(&helper).await.expect_err(script);
        let text = error.to_string();
        assert!(text.contains(told) && text.contains("registry.example"), "{script}: {text}");
        assert!(!text.contains("top-secret"), "{text}");
        assert_eq!(error.is_transient(), transient, "{script}");
    }
    let nowhere = Helper { program: "nowhere".parse().expect("a name"), server: "x".into(), environment: Vec::new() };
    let error = HelperCache::default().get(&nowhere).await.expect_err("there is none");
    assert_eq!(error, Error::Helper(HelperError::NoProgram(nowhere.program)));
    assert!(error.to_string().contains("docker-credential-nowhere in the directories of PATH"), "{error}");
}

#[tokio::test]
async fn a_helper_that_is_given_up_leaves_nothing_behind() {
    let place = Place::new();
    let helper = place.helper("sleep 600 & echo $! >child; echo $$ >parent; wait");
    let cache = HelperCache::default();
    let pid = |name: &str| fs::read_to_string(place.file(name)).ok()?.trim().parse::<u32>().ok();
    let started = async {
        loop {
            if let (Some(child), Some(parent)) = (pid("child"), pid("parent")) {
                return [child, parent];
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let pids = tokio::select! {
        outcome = cache.get(&helper) => panic!("{outcome:?}"),
        pids = started => pids,
    };
    for pid in pids {
        let alive = || {
            let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let until = Instant::now() + Duration::from_secs(10);
        while alive() {
            assert!(Instant::now() < until, "{pid} still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[test]
fn names_lead_to_no_other_place() {
    for name in ["", "../sh", "a/b", "a b", "a;b", &"x".repeat(65)] {
        assert!(Program::named(name).is_err(), "{name}");
        assert!(name.parse::<Program>().is_err(), "{name}");
    }
    assert!(Program::named("/bin/sh").is_err(), "a docker config.json names no path");
    assert_eq!("ecr-login".parse(), Ok(Program::Named("docker-credential-ecr-login".into())));
    assert_eq!("/opt/x".parse(), Ok(Program::At("/opt/x".into())));
}

#[test]
fn how_long_credentials_are_good_is_learnt_from_what_was_refused() {
    let helper = Helper { program: Program::At("/x".into()), server: "x".into(), environment: Vec::new() };
    let now = Instant::now();
    let handed =
        |secret: &str, refused_at| Handed { by: helper.clone(), outcome: Ok(password(secret)), at: now, refused_at };
    let mut kept = Kept::default();
    kept.keep(handed("one", Some(Duration::from_secs(10))));
    assert!(kept.good(&helper, now, now).is_none(), "it was refused");
    kept.keep(handed("one", None));
    assert_eq!(kept.life.bounding(LONGEST_LIFE), LONGEST_LIFE, "the same ones had not ended: they were wrong");
    kept.keep(handed("one", Some(Duration::from_secs(10))));
    kept.keep(handed("two", None));
    assert_eq!(kept.life.bounding(LONGEST_LIFE), Duration::from_secs(5));
    assert!(kept.good(&helper, now, now + Duration::from_secs(4)).is_some());
    assert!(kept.good(&helper, now, now + Duration::from_secs(5)).is_none());
    kept.keep(handed("two", Some(Duration::ZERO)));
    kept.keep(handed("three", None));
    assert_eq!(kept.life.bounding(LONGEST_LIFE), SHORTEST_LIFE);
    let failure = HelperError::NoProgram(helper.program.clone());
    let later = now + Duration::from_millis(1);
    kept.keep(Handed { outcome: Err(failure), at: later, ..handed("", None) });
    assert!(kept.good(&helper, now, later).is_some(), "it was waited for");
    assert!(kept.good(&helper, later, later).is_none(), "it may be mended by now");
}
