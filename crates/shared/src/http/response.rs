use super::activity::UnderWay;
use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// HTTP/2 holds a piece that it was given until the client's window is large enough, and takes no further one until
/// then. So pieces are small: what it holds is bounded, and that a client reads slowly is told from that it does not.
const PIECE: usize = 16 * 1024;

/// A response's body that tells whom it waits for.
#[derive(Debug)]
pub(super) struct ResponseBody {
    body: Body,
    rest: Bytes,
    under_way: UnderWay,
}

impl ResponseBody {
    pub(super) fn new(body: Body, under_way: UnderWay) -> Self {
        Self { body, rest: Bytes::new(), under_way }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        self.under_way.waits_for_client();
        Frame::data(self.rest.split_to(self.rest.len().min(PIECE)))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.piece())));
        }
        this.under_way.waits_for_us();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_data() {
                Ok(data) => {
                    this.rest = data;
                    this.piece()
                }
                Err(other) => other,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before the first piece only: it becomes Content-Length.
        self.body.size_hint()
    }
}
