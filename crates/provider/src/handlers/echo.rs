//! `echo`: answers with what it was sent, byte for byte.

use crate::context::Context;
use crate::handler::Failure;
use shared::message::Content;

pub(crate) async fn echo(content: Content, _: Context) -> Result<Content, Failure> {
    Ok(content)
}
