//! Authorization of requests: answers the challenges of a registry, with tokens of its token server or with the
//! credentials themselves.

use std::sync::Arc;

use http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use reqwest::Response;
use tokio::time::timeout;
use url::Url;

use super::{ANSWER, Client, REDIRECTS, Scope, leads_on};
use crate::{
    Error, Result,
    http_response::refusal,
    registry::{
        challenge::Challenge,
        credentials::Credentials,
        token::{self, Issued, TokenRequest, basic},
    },
};

impl Client {
    /// Adds the authorization that a challenge requires. Returns the credentials if the header contains them directly.
    pub(super) async fn authorize(
        &self,
        headers: &mut HeaderMap,
        challenge: Option<&Challenge>,
        scope: &Scope,
        fresh: bool,
    ) -> Result<Option<Credentials>> {
        let Some(challenge) = challenge else { return Ok(None) };
        let (value, shown) = match challenge {
            Challenge::Basic => match self.credentials.current().await? {
                Credentials::Password { username, password } => {
                    (basic(&username, &password), Some(Credentials::Password { username, password }))
                }
                _ => return Ok(None),
            },
            Challenge::Bearer { realm, service } => {
                let known = if fresh { None } else { self.tokens.get(&scope.0).await };
                let token = match known {
                    Some(token) => token,
                    None => self.token(realm, service.as_deref(), scope).await?,
                };
                (format!("Bearer {token}"), None)
            }
        };
        headers.insert(AUTHORIZATION, token::sensitive(value)?);
        Ok(shown)
    }

    pub(super) fn can_answer(&self, challenge: &Challenge) -> bool {
        !matches!(challenge, Challenge::Basic) || !self.credentials.is_anonymous()
    }

    /// Requests a token from the token server of a challenge, if its URL is allowed.
    pub(super) async fn token(&self, realm: &str, service: Option<&str>, scope: &Scope) -> Result<String> {
        let what = format!("a token for {}", self.location.authority());
        let url = self.location.base.join(realm).map_err(|error| Error::malformed(what.as_str(), error))?;
        self.allow(&what, &url)?;
        let mut credentials = self.credentials.current().await?;
        let mut response = self.ask_for_token(&what, &url, service, scope, &credentials).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.credentials.renew(&credentials).await? {
            credentials = self.credentials.current().await?;
            response = self.ask_for_token(&what, &url, service, scope, &credentials).await?;
        }
        match response.status() {
            StatusCode::UNAUTHORIZED => return Err(self.unauthorized(&what)),
            status if !status.is_success() => return Err(refusal(&what, response).await),
            _ => {}
        }
        let issued = Issued::read(&what, response).await?;
        let secret = issued.secret().ok_or_else(|| Error::malformed(what, "the answer has no token"))?.to_owned();
        self.tokens.put(&scope.0, &issued).await;
        Ok(secret)
    }

    /// Requests a token and follows allowed redirects. Only the origin of the realm receives the credentials.
    pub(super) async fn ask_for_token(
        &self,
        what: &str,
        realm: &Url,
        service: Option<&str>,
        scope: &Scope,
        credentials: &Credentials,
    ) -> Result<Response> {
        let mut request = TokenRequest::new(realm.clone(), service, &scope.0, credentials)?;
        for _ in 0..=REDIRECTS {
            self.admit(what, &request.url).await?;
            let sent = request.build(&self.http).send();
            let response = timeout(ANSWER, sent).await.map_err(|_| Error::Stalled("a token"))?;
            let response = response.map_err(|error| self.unsent(what, &request.url, &error))?;
            if !leads_on(&request.method, response.status()) {
                return Ok(response);
            }
            let url = self.target(what, &request.url, response.headers())?;
            request = request.redirected(what, url)?;
        }
        Err(Error::malformed(what, "it is redirected too often"))
    }

    /// Returns the remembered challenge. It applies to the registry's own URLs only.
    pub(super) fn known_challenge(&self, url: &Url) -> Option<Arc<Challenge>> {
        self.challenge.load_full().filter(|_| self.is_own(url))
    }

    pub(super) fn remember_challenge(&self, challenge: Arc<Challenge>) {
        self.challenge.store(Some(challenge));
    }

    pub(super) fn forget_challenge(&self) -> Option<Arc<Challenge>> {
        self.challenge.store(None);
        None
    }

    pub(super) fn unauthorized(&self, what: &str) -> Error {
        let host = self.location.authority();
        let detail = if self.credentials.is_anonymous() {
            format!(" ({host} wants credentials and the region has none)")
        } else {
            format!(" ({host} refuses the region's credentials)")
        };
        Error::Status { what: what.into(), status: StatusCode::UNAUTHORIZED, detail: detail.into(), retry_after: None }
    }
}
