//! Tests of the whole configuration.

use super::Config;

const MINIMAL: &str = r#"
    [database]
    url = "sqlite://state.db"
    [home]
    region = "a"
    [[region]]
    id = "a"
    store = "dir:///a"
"#;

fn error(section: &str) -> String {
    Config::parse(&format!("{MINIMAL}\n{section}")).expect_err(section).to_string()
}

#[test]
fn a_minimal_configuration_is_valid() {
    let config = Config::parse(MINIMAL).expect("a valid configuration");
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:50051");
}

#[test]
fn an_error_names_the_key() {
    for (section, expected) in [
        ("[server]\nlisten = 5", "server.listen"),
        ("[server]\nlisen = \"127.0.0.1:1\"", "lisen"),
        ("[server]\nlisten = \"0.0.0.0:50051\"", "server.allow_plaintext = true"),
        ("[server]\nmax_in_flight = 0", "server.max_in_flight"),
        ("[housekeeping]\ninterval_ms = 0", "housekeeping.interval_ms"),
        ("[worker]\nheartbeat_ms = 6000", "worker.heartbeat_ms"),
        ("[worker]\nregions = [\"b\"]", "worker.regions: b is not one of [[region]]"),
        ("[[region]]\nid = \"a\"\nstore = \"dir:///b\"", "region[1].id: a is configured twice"),
        ("[[region]]\nid = \"b\"\nstore = \"ftp://b\"", "region[1].store"),
        ("[[region]]\nid = \"../b\"\nstore = \"dir:///b\"", "region[1].id"),
        ("[[region]]\nid = \"all\"\nstore = \"dir:///b\"", "region[1].id"),
        ("[[policy]]\nname = \"p\"\ndocument = '{}'", "policy[0].document: it has no Version"),
        ("[[principal]]\narn = \"bob\"\ntoken_sha256 = \"\"", "principal[0].arn"),
        ("[[principal]]\narn = \"acs:ram::1:user/bob\"\ntoken_sha256 = \"secret\"", "principal[0].token_sha256"),
        ("unparsable", "TOML parse error"),
        ("[nonsense]\na = 1", "nonsense"),
    ] {
        let error = error(section);
        assert!(error.contains(expected), "{section:?} failed with {error:?}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn an_invalid_database_url_is_rejected_without_repeating_its_password() {
    for (url, expected) in [
        ("oracle://user:secret@host/name", "\"oracle\" is not a supported database"),
        ("postgres://user:secret@host:port/name", "invalid port number"),
        ("user:secret@host", "\"user\" is not a supported database"),
    ] {
        let text = MINIMAL.replace("sqlite://state.db", url);
        let error = Config::parse(&text).expect_err(url).to_string();
        assert!(error.contains("database.url") && error.contains(expected), "{url}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let config =
        Config::parse(&MINIMAL.replace("sqlite://state.db", "postgres://user:secret@host/name")).expect("it is one");
    assert!(!format!("{config:?}").contains("user:secret"));
}

#[test]
fn a_reachable_listener_needs_tls_unless_plaintext_is_allowed() {
    let text = format!("{MINIMAL}\n[server]\nlisten = \"0.0.0.0:1\"\nallow_plaintext = true");
    assert!(Config::parse(&text).is_ok());
}
