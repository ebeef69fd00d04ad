//! TLS: server and client certificates, and their replacement at runtime.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use appferry::{app::Role, contract::v1::app_sync_service_client::AppSyncServiceClient};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{
    key_material::KeyMaterial,
    process, refusal,
    site::{ADMIN, READER, Running, Site, ask},
    until,
};

const WORKLOAD: &str = "spiffe://cluster.local/ns/hpc/sa/publisher";
const NOW: (i64, i64) = (-60, 3_600);

/// Returns a site with its own certificate, which accepts client certificates of the authority `clients`.
fn site(key_material: &KeyMaterial, more: &str) -> Site {
    key_material.authority("servers");
    key_material.authority("clients");
    key_material.certificate("servers", "server", "localhost,127.0.0.1", NOW);
    let mut site = Site::new();
    let file = |name: &str| key_material.file(name).display().to_string();
    site.more = format!(
        r#"
        [tls]
        certificate_file = "{}"
        key_file = "{}"
        client_ca_file = "{}"
        {more}
        [[principal]]
        arn = "acs:ram::1234:role/publisher"
        certificates = ["{WORKLOAD}", "ci.example.com"]
        policies = ["by-tls"]
        [[policy]]
        name = "by-tls"
        document = '''{{"Version":"1","Statement":{{"Effect":"Allow","Action":"ehpc:SynchronizeApp","Resource":"*",
            "Condition":{{"Bool":{{"acs:SecureTransport":"true"}},"IpAddress":{{"acs:SourceIp":["127.0.0.1","::1"]}}}}}}}}'''
        "#,
        file("server.pem"),
        file("server.key"),
        file("clients.pem"),
    );
    site
}

async fn connect(
    running: &Running,
    key_material: &KeyMaterial,
    certificate: Option<&str>,
) -> Result<Channel, tonic::transport::Error> {
    connect_counted(running, key_material, certificate, &Arc::default()).await
}

/// Connects a channel that counts its connections.
async fn connect_counted(
    running: &Running,
    key_material: &KeyMaterial,
    certificate: Option<&str>,
    connections: &Arc<AtomicUsize>,
) -> Result<Channel, tonic::transport::Error> {
    let pem = |name: &str| fs::read(key_material.file(name)).expect("a file");
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem("servers.pem")));
    if let Some(name) = certificate {
        tls = tls.identity(Identity::from_pem(pem(&format!("{name}.pem")), pem(&format!("{name}.key"))));
    }
    let (address, connections) = (running.address, Arc::clone(connections));
    let connector = tower::service_fn(move |_| {
        connections.fetch_add(1, Ordering::SeqCst);
        async move { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address").tls_config(tls)?;
    endpoint.connect_with_connector(connector).await
}

async fn call(channel: Channel, token: Option<&str>) -> Status {
    let mut request = Request::new(ask("nobody-knows-it", &[]));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a value"));
    }
    AppSyncServiceClient::new(channel).synchronize_app(request).await.expect_err("there is no image")
}

/// Asserts that the service rejects a client certificate, or the lack of one, during the handshake. With TLS 1.3, a
/// client may notice the rejection only when it first uses the connection.
async fn is_rejected(running: &Running, key_material: &KeyMaterial, certificate: Option<&str>) {
    let rejected = match connect(running, key_material, certificate).await {
        Ok(channel) => {
            let status = call(channel, Some(ADMIN)).await;
            status.details().is_empty() && status.code() != Code::Unauthenticated
        }
        Err(_) => TcpStream::connect(running.address).await.is_ok(),
    };
    assert!(rejected, "{certificate:?} is accepted");
}

/// Makes a call for an unknown image and returns the reason of the error: `ImageNotFound` for an authorized caller.
async fn reason(channel: Channel, token: Option<&str>) -> String {
    refusal::read(&call(channel, token).await).reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_says_who_calls() {
    let key_material = KeyMaterial::new();
    let running = site(&key_material, "").start_as(Role::Server).await;
    key_material.authority("strangers");
    // The matching name comes after the last name that the service reads.
    let many: Vec<_> = (0..64).map(|n| format!("n{n}.example.com")).chain(["ci.example.com".to_owned()]).collect();
    let many = many.join(",");
    for (authority, name, names, valid) in [
        ("clients", "workload", WORKLOAD, NOW),
        ("clients", "both", "spiffe://cluster.local/ns/web/sa/other,ci.example.com", NOW),
        ("clients", "twice", "spiffe://cluster.local/ns/hpc/sa/publisher,spiffe://cluster.local/ns/web/sa/other", NOW),
        ("clients", "unparsable", "spiffe://cluster.local/ns//sa/publisher,ci.example.com", NOW),
        ("clients", "capitals", "SPIFFE://cluster.local/ns/hpc/sa/publisher,ci.example.com", NOW),
        ("clients", "beside", "spiffe://cluster.local/ns/hpc/sa/publisher,https://example.com/x", NOW),
        ("clients", "many", &many, NOW),
        ("clients", "dns", "CI.example.com", NOW),
        ("clients", "nobody", "other.example.com", NOW),
        ("clients", "expired", WORKLOAD, (-3_600, -60)),
        ("clients", "early", WORKLOAD, (600, 3_600)),
        ("strangers", "stranger", WORKLOAD, NOW),
    ] {
        key_material.certificate(authority, name, names, valid);
    }
    for (certificate, expected) in [
        (Some("workload"), "ImageNotFound"),
        (Some("dns"), "ImageNotFound"),
        (Some("nobody"), "InvalidAccessKeyId.NotFound"),
        // A SPIFFE ID is the whole identity: other names in the certificate are ignored.
        (Some("both"), "InvalidAccessKeyId.NotFound"),
        (None, "MissingCredentials"),
    ] {
        let channel = connect(&running, &key_material, certificate).await.expect("it is accepted");
        assert_eq!(reason(channel, None).await, expected, "{certificate:?}");
    }
    for certificate in ["expired", "early", "stranger", "twice", "unparsable", "capitals", "beside", "many"] {
        is_rejected(&running, &key_material, Some(certificate)).await;
    }
    // A token takes precedence over the certificate.
    let channel = connect(&running, &key_material, Some("workload")).await.expect("it is accepted");
    assert_eq!(reason(channel.clone(), Some(ADMIN)).await, "ImageNotFound");
    assert_eq!(reason(channel, Some("a-guess")).await, "InvalidAccessKeyId.NotFound");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_must_show_a_certificate_is_not_heard_without() {
    let key_material = KeyMaterial::new();
    let running = site(&key_material, "require_client_certificate = true").start_as(Role::Server).await;
    is_rejected(&running, &key_material, None).await;
    key_material.certificate("clients", "dns", "ci.example.com", NOW);
    let channel = connect(&running, &key_material, Some("dns")).await.expect("it is accepted");
    assert_eq!(reason(channel, None).await, "ImageNotFound");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_and_principals_go_without_a_restart() {
    let key_material = KeyMaterial::new();
    let running = site(&key_material, "").start_as(Role::Server).await;
    key_material.certificate("clients", "workload", WORKLOAD, NOW);
    let connections = Arc::default();
    let channel =
        connect_counted(&running, &key_material, Some("workload"), &connections).await.expect("it is accepted");
    assert_eq!(reason(channel.clone(), None).await, "ImageNotFound");

    // The name is removed: the open connection stays open, but has no permissions any more.
    let config = running.site.directory.path().join("appferry.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, text.replace(WORKLOAD, "spiffe://cluster.local/ns/hpc/sa/another")).expect("it is written");
    until("the name to be removed", async || {
        (reason(channel.clone(), None).await == "InvalidAccessKeyId.NotFound").then_some(())
    })
    .await;
    fs::write(&config, &text).expect("it is written");
    until("the name to be restored", async || (reason(channel.clone(), None).await == "ImageNotFound").then_some(()))
        .await;
    assert_eq!(connections.load(Ordering::SeqCst), 1, "no certificate has changed");

    // The client authority is replaced: a certificate of the old one is rejected, on new and on existing connections.
    key_material.authority("successors");
    fs::copy(key_material.file("successors.pem"), key_material.file("clients.pem")).expect("it is replaced");
    until("the old certificate to be rejected", async || {
        call(channel.clone(), None).await.details().is_empty().then_some(())
    })
    .await;
    key_material.certificate("successors", "workload", WORKLOAD, NOW);
    let successor = connect(&running, &key_material, Some("workload")).await.expect("it is accepted");
    assert_eq!(reason(successor.clone(), None).await, "ImageNotFound");

    // During a replacement, certificate and key may not match; that changes nothing.
    let whole = fs::read(key_material.file("server.key")).expect("a key");
    fs::write(key_material.file("server.key"), "-----BEGIN").expect("it is written");
    // The configuration is changed after the key: once its change is in effect, the key has been read as well.
    let reader = hex::encode(Sha256::digest(READER));
    fs::write(&config, text.replace(&reader, &"0".repeat(64))).expect("it is written");
    until("the change to take effect", async || {
        (reason(successor.clone(), Some(READER)).await == "InvalidAccessKeyId.NotFound").then_some(())
    })
    .await;
    let again = connect(&running, &key_material, Some("workload")).await.expect("it is accepted");
    assert_eq!(reason(again, None).await, "ImageNotFound");
    fs::write(key_material.file("server.key"), whole).expect("it is written");
    running.stop().await;
}

/// A connection with an open stream ignores GOAWAY.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_at_once_when_its_issuer_is_taken_out() {
    let key_material = KeyMaterial::new();
    let running = site(&key_material, "").start_as(Role::Server).await;
    key_material.certificate("clients", "workload", WORKLOAD, NOW);
    let watch = async |certificate| {
        let channel = connect(&running, &key_material, certificate).await.expect("it is accepted");
        let mut watch =
            HealthClient::new(channel).watch(HealthCheckRequest::default()).await.expect("it begins").into_inner();
        watch.message().await.expect("it is open").expect("a status");
        watch
    };
    let (mut shown, mut nothing) = (watch(Some("workload")).await, watch(None).await);
    key_material.authority("successors");
    fs::copy(key_material.file("successors.pem"), key_material.file("clients.pem")).expect("it is replaced");
    // The files are checked every second.
    let ended = tokio::time::timeout(Duration::from_secs(5), shown.message()).await.expect("it ends");
    ended.expect_err("it is cut");
    // A connection without a client certificate receives GOAWAY, and its calls continue.
    let open = tokio::time::timeout(Duration::from_millis(500), nothing.message()).await;
    assert!(open.is_err(), "{open:?}");
    running.stop().await;
}

/// Creates a self-signed certificate with the given extensions. Returns the paths of the certificate and its key.
fn signs_itself(directory: &Path, name: &str, extensions: &[&str]) -> [String; 2] {
    let [certificate, key] = ["pem", "key"].map(|end| directory.join(format!("{name}.{end}")).display().to_string());
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=localhost", "-keyout", &key, "-out", &certificate]);
    for extension in extensions {
        openssl.args(["-addext", extension]);
    }
    let made = openssl.output().expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
    [certificate, key]
}

/// The command line accepts the self-signed server certificates that `curl --cacert` accepts, whether or not they claim
/// to be authorities.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_takes_a_server_that_signs_itself() {
    const NAMED: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1";
    for (name, extensions, refused) in [
        ("authority", &[NAMED][..], None),
        ("server", &[NAMED, "basicConstraints=critical,CA:FALSE"], None),
        ("usage", &[NAMED, "keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth"], None),
        ("unnamed", &[], Some("-addext subjectAltName=DNS:localhost")),
        ("other", &["subjectAltName=DNS:elsewhere.example"], Some("not valid for name")),
    ] {
        let mut site = Site::new();
        let [certificate, key] = signs_itself(site.directory.path(), name, extensions);
        site.more = format!("[tls]\ncertificate_file = \"{certificate}\"\nkey_file = \"{key}\"\n");
        let running = site.start_as(Role::Server).await;
        let endpoint = format!("https://localhost:{}", running.address.port());
        let mut command = process::command(
            running.site.directory.path(),
            &["sync", "nobody-knows-it", "--endpoint", &endpoint, "--ca-file", &certificate],
        );
        command.env("APPFERRY_TOKEN", ADMIN);
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it ends").expect("it runs");
        let said = process::stderr(&output);
        assert!(said.contains(refused.unwrap_or("ImageNotFound")), "{name}: {said}");
        running.stop().await;
    }
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("empty.pem"), "no certificate").expect("a file");
    let output =
        process::run(directory.path(), &["list", "--endpoint", "https://localhost:1", "--ca-file", "empty.pem"]);
    let said = process::stderr(&output);
    assert!(said.contains("--ca-file empty.pem") && said.contains("contains no certificate"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_speaks_tls() {
    let key_material = KeyMaterial::new();
    let running = site(&key_material, "").start_as(Role::Server).await;
    key_material.certificate("clients", "dns", "ci.example.com", NOW);
    let file = |name: &str| key_material.file(name).display().to_string();
    let endpoint = format!("https://localhost:{}", running.address.port());
    let run = async |arguments: Vec<String>| {
        let directory = running.site.directory.path().to_owned();
        let run = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            process::run(Path::new(&directory), &arguments)
        };
        tokio::task::spawn_blocking(run).await.expect("it ends")
    };
    let with = |more: &[&str]| {
        let arguments = ["sync", "nobody-knows-it", "--endpoint", &endpoint].into_iter().chain(more.iter().copied());
        arguments.map(str::to_owned).collect::<Vec<_>>()
    };
    let (ca, certificate, key) = (file("servers.pem"), file("dns.pem"), file("dns.key"));
    let output = run(with(&["--ca-file", &ca, "--certificate-file", &certificate, "--key-file", &key])).await;
    assert!(process::stderr(&output).contains("ImageNotFound"), "{output:?}");
    let output = run(with(&["--certificate-file", &certificate, "--key-file", &key])).await;
    let message = process::stderr(&output);
    assert!(
        !output.status.success() && message.contains("failed to connect") && message.contains("certificate"),
        "{message}"
    );
    let output = run(with(&["--certificate-file", &certificate])).await;
    assert!(process::stderr(&output).contains("--key-file"), "{output:?}");
    running.stop().await;
}
