//! The remedy when a region can't be reached through its proxy.

use crate::{
    config::RegionProxy,
    storage::{ForwardProxy, ProxyTrial},
};

/// Tries to reach a region through its proxy, and returns the remedy. Returns `None` if the region has no proxy or the
/// proxy connects.
pub async fn of(proxy: Option<&RegionProxy>) -> Option<String> {
    let proxy = proxy?;
    advice(proxy, &proxy.proxy.try_to_reach(&proxy.target).await)
}

fn advice(RegionProxy { region, key, proxy, target }: &RegionProxy, trial: &ProxyTrial) -> Option<String> {
    let at = proxy.url().as_str().trim_end_matches('/');
    let host = target.host_str().unwrap_or_default();
    let around = format!("or let {region} go around it (`proxy = \"direct\"`, network.no_proxy)");
    Some(match trial {
        ProxyTrial::Passes => return None,
        ProxyTrial::Unreachable(problem) => {
            format!(
                "{key}: the proxy of {region}, {at}, can't be reached ({problem}); start it, correct the key, {around}"
            )
        }
        ProxyTrial::WantsLogin => {
            format!("{}: the proxy of {region}, {at}, {}", login_keys(key), wants_login(key, proxy))
        }
        ProxyTrial::Refuses(status) => format!(
            "{key}: the proxy of {region}, {at}, passes nothing on to {host} ({status}); allow the host in its rules, {around}"
        ),
        ProxyTrial::TargetUnreachable(status) => format!(
            "{key}: the proxy of {region}, {at}, responds but does not reach {host} ({status}); check that the store is running, its address, and \
             the rules of the proxy"
        ),
    })
}

/// Returns the keys of the proxy's credentials. The proxy of a single region has none, so its own key is returned.
fn login_keys(key: &str) -> String {
    match key {
        "network.proxy" => "network.proxy_username and its password".to_owned(),
        key => key.to_owned(),
    }
}

fn wants_login(key: &str, proxy: &ForwardProxy) -> &'static str {
    match (proxy.login(), key) {
        (Some(_), _) => "rejects the user name and password (407)",
        (None, "network.proxy") => {
            "wants a name and a password (407); set network.proxy_username and network.proxy_password_file"
        }
        (None, _) => "wants a name and a password (407), which only the proxy of [network] can have",
    }
}
