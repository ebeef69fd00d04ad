//! What to do where a region that is reached by way of a proxy can't be reached.

use crate::{
    config::RegionProxy,
    region::{ForwardProxy, ProxyTrial},
};

/// Asks the proxy of a region for it, and says what to do about it; nothing if there is none, or it passes on what it is asked.
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
            "{key}: the proxy of {region}, {at}, passes nothing on to {host} ({status}); its rules have to allow that, {around}"
        ),
        ProxyTrial::TargetUnreachable(status) => format!(
            "{key}: the proxy of {region}, {at}, is there and does not reach {host} ({status}); see whether the store is running and its address is \
             right, and where the proxy may go"
        ),
    })
}

/// The keys that have to do with what a proxy is shown: those of one region have no such keys.
fn login_keys(key: &str) -> String {
    match key {
        "network.proxy" => "network.proxy_username and its password".to_owned(),
        key => key.to_owned(),
    }
}

fn wants_login(key: &str, proxy: &ForwardProxy) -> &'static str {
    match (proxy.login(), key) {
        (Some(_), _) => "refuses that name and password (407)",
        (None, "network.proxy") => {
            "wants a name and a password (407): give network.proxy_username and network.proxy_password_file"
        }
        (None, _) => "wants a name and a password (407), and only the proxy of [network] can be shown them",
    }
}
