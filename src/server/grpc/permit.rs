//! Proof that a call was authorized. Only the authorization layer creates one, and every handler requires it.

use tonic::{Request, Status};

use crate::{domain::RequestId, identity::Caller, ram::Principal};

/// An authorized call. A request extension.
#[derive(Debug, Clone)]
pub struct Permit {
    request_id: RequestId,
    caller: Caller,
}

impl Permit {
    /// Permits a call. Only the authorization layer may call this.
    pub(in crate::server) fn grant(request_id: RequestId, caller: Caller) -> Self {
        Self { request_id, caller }
    }

    /// Takes the permit of a call.
    ///
    /// # Errors
    ///
    /// Fails with `PERMISSION_DENIED` if the call has no permit, because it did not pass through the authorization
    /// layer.
    pub fn take<T>(request: &mut Request<T>) -> Result<Self, Status> {
        let permit = request.extensions_mut().remove();
        permit.ok_or_else(|| Status::permission_denied("the call was not authorized"))
    }

    /// Returns the id of the call.
    pub fn request_id(&self) -> RequestId {
        self.request_id
    }

    /// Returns the caller's principal.
    pub fn principal(&self) -> &Principal {
        &self.caller.identity.principal
    }
}
