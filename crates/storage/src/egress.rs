//! Outgoing requests to stores, directly or through a proxy. A guard decides which addresses may be contacted.

mod forward_proxy;
mod proxy_trial;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::{
    ClientBuilder, Proxy,
    dns::{Name, Resolve, Resolving},
    redirect::Policy,
};
use tokio::time::timeout;
use url::{Host, Url};

pub use forward_proxy::{Exception, ExceptionError, ForwardProxy};
pub use proxy_trial::ProxyTrial;

use super::ssrf_guard::{Forbidden, Guard};

/// The time limit for establishing a connection, and for resolving a name.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the guard's verdict on a name requested through the proxy stays valid.
const JUDGED_FOR: Duration = Duration::from_secs(10);
/// Maximum number of cached verdicts.
const MOST_JUDGED: usize = 64;

/// The reason why a request is not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum NotAdmitted {
    /// The guard forbids the address.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The host can't be resolved, so the guard can't check the address to which the proxy would connect.
    #[error(
        "{host} can't be resolved here ({problem}), so that nobody knows where the proxy would go; network.proxy_resolves = true leaves that to the proxy"
    )]
    Unresolved { host: String, problem: String },
}

/// The network path to stores. Clones share the cache of verdicts.
#[derive(Debug, Clone)]
pub struct Egress {
    guard: Guard,
    proxy: Option<Arc<ForwardProxy>>,
    /// The time at which each name requested through the proxy was last admitted.
    judged: Arc<Mutex<HashMap<String, Instant>>>,
}

impl From<Guard> for Egress {
    fn from(guard: Guard) -> Self {
        Self::new(guard, None)
    }
}

impl Egress {
    /// Creates an egress that uses the proxy, if there is one.
    #[must_use]
    pub fn new(guard: Guard, proxy: Option<ForwardProxy>) -> Self {
        Self { guard, proxy: proxy.map(Arc::new), judged: Arc::default() }
    }

    /// Returns a builder for clients that use this egress. They follow no redirects and ignore proxy settings of the
    /// environment.
    pub fn client(&self) -> reqwest::Result<ClientBuilder> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("appferry/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .dns_resolver(Dialing(self.clone()));
        let Some(proxy) = self.proxy.clone() else { return Ok(builder) };
        let login = proxy.login().map(|(username, password)| (username.to_owned(), password.to_owned()));
        let mut way = Proxy::custom(move |url| proxy.covers(url).then(|| proxy.url().clone()));
        if let Some((username, password)) = login {
            way = way.basic_auth(&username, &password);
        }
        Ok(builder.proxy(way))
    }

    /// Returns the URL of the proxy for a URL, without its login, or `None` for a direct connection.
    pub fn proxy_for(&self, url: &Url) -> Option<&Url> {
        self.proxy.as_deref().filter(|proxy| proxy.covers(url)).map(ForwardProxy::url)
    }

    /// Rejects a URL whose host is a forbidden IP address.
    pub fn check(&self, url: &Url) -> Result<(), Forbidden> {
        self.guard.check(url)
    }

    /// Rejects a request through the proxy to a forbidden address, because the guard does not see the addresses to
    /// which the proxy connects. For direct requests, the guard checks each address on connect.
    pub async fn admit(&self, url: &Url) -> Result<(), NotAdmitted> {
        let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.covers(url)) else { return Ok(()) };
        self.guard.check(url)?;
        let Some(Host::Domain(name)) = url.host().filter(|_| !proxy.resolves()) else { return Ok(()) };
        if self.judged().get(name).is_some_and(|at| at.elapsed() < JUDGED_FOR) {
            return Ok(());
        }
        let too_late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
        let addresses = timeout(CONNECT, self.guard.look_up(name)).await.unwrap_or_else(too_late);
        let unresolved =
            |error: io::Error| NotAdmitted::Unresolved { host: name.to_owned(), problem: error.to_string() };
        self.guard.judge_all(name, &addresses.map_err(unresolved)?)?;
        let mut judged = self.judged();
        if judged.len() >= MOST_JUDGED {
            judged.clear();
        }
        judged.insert(name.to_owned(), Instant::now());
        Ok(())
    }

    fn judged(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves the hosts to connect to: stores, whose addresses the guard checks, and the proxy, which the configuration
/// trusts.
#[derive(Debug)]
struct Dialing(Egress);

impl Resolve for Dialing {
    fn resolve(&self, name: Name) -> Resolving {
        let Egress { guard, proxy, .. } = &self.0;
        let is_proxy = proxy.as_ref().is_some_and(|proxy| proxy.url().host_str() == Some(name.as_str()));
        if is_proxy { guard.clone().trusting().resolve(name) } else { guard.resolve(name) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::{Egress, ForwardProxy, Guard, NotAdmitted};

    fn guard(leads_to: Option<&'static str>, asked: &Arc<AtomicUsize>) -> Guard {
        let asked = Arc::clone(asked);
        Guard::with_lookup(
            false,
            Arc::new(move |_| {
                asked.fetch_add(1, Ordering::Relaxed);
                let answer = leads_to.map(|address| vec![address.parse().expect("an address")]);
                Box::pin(async move { answer.ok_or_else(|| std::io::Error::other("no such name")) })
            }),
        )
    }

    fn proxy() -> ForwardProxy {
        ForwardProxy::new("http://proxy.example:3128".parse().expect("a URL"))
            .except(vec!["direct.example".parse().expect("one")])
    }

    #[tokio::test]
    async fn what_the_proxy_is_asked_for_is_judged_before() {
        let asked = Arc::default();
        let admit = async |leads_to, proxy: ForwardProxy, url: &str| {
            Egress::new(guard(leads_to, &asked), Some(proxy)).admit(&url.parse().expect("a URL")).await
        };
        let inward = Some("169.254.169.254:0");
        for (leads_to, url) in [
            (inward, "https://registry.example/"),
            (Some("127.0.0.1:0"), "https://registry.example/"),
            (None, "https://169.254.169.254/"),
            (None, "https://127.0.0.1/"),
        ] {
            let refused = admit(leads_to, proxy(), url).await;
            assert!(matches!(refused, Err(NotAdmitted::Forbidden(_))), "{leads_to:?} {url}: {refused:?}");
        }
        let refused = admit(None, proxy(), "https://registry.example/").await.expect_err("it leads nowhere");
        assert!(refused.to_string().contains("network.proxy_resolves = true"), "{refused}");
        assert_eq!(admit(None, proxy().resolving(true), "https://registry.example/").await, Ok(()));
        let refused = admit(None, proxy().resolving(true), "https://169.254.169.254/").await;
        assert!(matches!(refused, Err(NotAdmitted::Forbidden(_))), "{refused:?}");
        // A direct connection is checked on connect.
        assert_eq!(admit(inward, proxy(), "https://direct.example/").await, Ok(()));
        assert_eq!(admit(Some("192.0.2.1:0"), proxy(), "https://registry.example/").await, Ok(()));
    }

    #[tokio::test]
    async fn a_name_is_not_looked_up_for_every_request() {
        let asked = Arc::default();
        let egress = Egress::new(guard(Some("192.0.2.1:0"), &asked), Some(proxy()));
        for _ in 0..5 {
            assert_eq!(egress.admit(&"https://registry.example/".parse().expect("a URL")).await, Ok(()));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
