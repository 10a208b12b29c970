use super::error::Error;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

/// What stands in a path for its one parameter.
#[derive(Debug)]
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let name = Path::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|error| Error::bad_request(error.body_text()))
    }
}
