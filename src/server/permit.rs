//! The proof that a call was allowed. Only the authorization layer makes one, and every handler asks for it.

use tonic::{Request, Status};

use crate::{domain::RequestId, ram::Principal};

/// A call that was allowed.
#[derive(Debug, Clone)]
pub struct Permit {
    request_id: RequestId,
    principal: Principal,
}

impl Permit {
    /// Only `authorize` may call this.
    pub(super) fn grant(request_id: RequestId, principal: Principal) -> Self {
        Self { request_id, principal }
    }

    /// The permit of a call. A call without one has not gone through the stack, and goes no further.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let permit = request.extensions().get::<Self>().cloned();
        permit.ok_or_else(|| Status::permission_denied("the call was not authorized"))
    }

    /// The call's id.
    pub fn request_id(&self) -> RequestId {
        self.request_id
    }

    /// Who calls.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }
}
