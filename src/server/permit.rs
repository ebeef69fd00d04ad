//! The proof that a call was allowed. Only the authorization layer makes one, and every handler asks for it.

use tonic::{Request, Status};

use crate::{domain::RequestId, identity::Caller, ram::Principal};

/// A call that was allowed.
#[derive(Debug, Clone)]
pub struct Permit {
    request_id: RequestId,
    caller: Caller,
}

impl Permit {
    /// Only `authorize` may call this.
    pub(super) fn grant(request_id: RequestId, caller: Caller) -> Self {
        Self { request_id, caller }
    }

    /// Takes the permit of a call. A call without one has not gone through the stack, and goes no further.
    pub fn take<T>(request: &mut Request<T>) -> Result<Self, Status> {
        let permit = request.extensions_mut().remove();
        permit.ok_or_else(|| Status::permission_denied("the call was not authorized"))
    }

    /// The call's id.
    pub fn request_id(&self) -> RequestId {
        self.request_id
    }

    /// Who calls.
    pub fn principal(&self) -> &Principal {
        &self.caller.identity.principal
    }
}
