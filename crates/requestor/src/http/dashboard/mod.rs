//! `/`: operations as they happen, for people. The page uses the same calls as any caller, so it shows what its key may
//! see, and nothing here is asked for a caller.

use super::fixed;
use axum::Router;

/// Its own script and style, and this service's calls; nothing from elsewhere, and no other page around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let part = |content_type, body| fixed(content_type, POLICY, body);
    Router::new()
        .route("/", part("text/html; charset=utf-8", include_str!("page.html")))
        .route("/dashboard.js", part("text/javascript; charset=utf-8", include_str!("page.js")))
        .route("/dashboard.css", part("text/css; charset=utf-8", include_str!("page.css")))
}
