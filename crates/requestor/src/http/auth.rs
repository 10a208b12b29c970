//! Who asks.

use super::App;
use super::error::Error;
use crate::operation::ANONYMOUS;
use crate::store::Scope;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::sync::Arc;

/// Who asks. A handler that takes this cannot be reached by anybody else.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    /// Whether everybody's operations can be seen, canceled and retried.
    pub(crate) admin: bool,
}

impl Caller {
    /// Whose operations the caller may see.
    pub(crate) fn scope(&self) -> Scope {
        if self.admin { Scope::All } else { Scope::Of(Arc::clone(&self.name)) }
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Error;

    async fn from_request_parts(_: &mut Parts, _: &App) -> Result<Self, Error> {
        Ok(Self { name: ANONYMOUS.into(), admin: true })
    }
}
