// HTTP/1.1 and HTTP/2, with TLS or without, and a deadline for everything that a client can be slow at. A request's body
// is the one exception: who reads it limits that, since only a handler knows what to answer then.

/// What a connection is doing, and since when.
mod activity;
mod connection;
mod health;
mod limits;
mod response;
mod server;
/// How many connections there may be.
mod slots;
mod socket;
mod tls;

pub use health::{check, health_routes, reachable};
pub use limits::ServerLimits;
pub use server::serve;
pub use tls::TlsConfig;

use crate::problem::{self, Problem};
use anyhow::Context;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;

/// Connections that may wait to be accepted. The standard library's 128 are too few where thousands come back at once
/// after a restart: the others would be tried again only after a second.
const QUEUE: i32 = 4096;

/// Listens on `address`.
///
/// # Errors
/// Why it cannot: in use, not allowed, or not an address of this machine.
pub fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart must not wait until the connections of the process before are forgotten.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(QUEUE)?;
        socket.set_nonblocking(true)?;
        std::io::Result::Ok(socket.into())
    };
    listen().with_context(|| format!("http.listen: cannot listen on {address}"))
}

/// A problem as a response with the problem's own status.
#[must_use]
pub fn problem_response(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, problem.to_json()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    response
}

/// What a caller learns of a panic; what it said is in the log.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    let problem =
        Problem::new("internal-error", 500, "Internal error", "this should not happen; see the service's log");
    problem_response(&problem)
}
