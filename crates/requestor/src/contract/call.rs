//! What is documented of a call.

use super::problems::ProblemType;

/// A call: a method of a path.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// The name by which clients that are generated from the document know it.
    pub(super) id: &'static str,
    pub(super) group: &'static str,
    pub(super) summary: &'static str,
    pub(super) about: &'static str,
    /// Names in `fields::parameters`.
    pub(super) parameters: Vec<&'static str>,
    /// Whether it takes JSON.
    pub(super) takes_body: bool,
    pub(super) answers: Vec<Answer>,
    pub(super) problems: Vec<&'static ProblemType>,
    /// Whether an answer may be the problem that the operation has ended with, with the status of that.
    pub(super) tells_outcome: bool,
    /// Whether each answer tells what is left of the caller's quotas.
    pub(super) counts: bool,
}

/// An answer that is no problem.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: &'static str,
    pub(super) about: &'static str,
    /// Names of headers; with a question mark those that are not always there.
    pub(super) headers: &'static [&'static str],
    pub(super) content: Content,
}

/// What an answer holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    Nothing,
    /// Whatever the provider has made.
    Result,
    /// Events: JSON of this schema, or a stream.
    Events(&'static str, &'static [&'static str]),
    /// JSON of this schema, with these examples.
    Json(&'static str, &'static [&'static str]),
    Text(&'static str),
}

impl Call {
    pub(super) fn new(method: &'static str, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self { method, path, id, group: "Operations", summary, ..Self::default() }.fails(&["internal-error"])
    }

    pub(super) fn in_group(mut self, group: &'static str) -> Self {
        self.group = group;
        self
    }

    pub(super) fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub(super) fn takes(mut self, parameters: &[&'static str]) -> Self {
        self.parameters.extend(parameters);
        self
    }

    pub(super) fn answers(
        mut self,
        status: &'static str,
        about: &'static str,
        headers: &'static [&'static str],
        content: Content,
    ) -> Self {
        self.answers.push(Answer { status, about, headers, content });
        self
    }

    pub(super) fn fails(mut self, problems: &[&'static str]) -> Self {
        self.problems.extend(problems.iter().filter_map(|name| ProblemType::named(name)));
        self
    }

    /// Whether the caller must have a key, if there are any.
    pub(super) fn needs_key(&self) -> bool {
        self.path.starts_with("/v1/")
    }

    /// Of a caller who must have a key, from the store.
    pub(super) fn of_caller(self) -> Self {
        self.fails(&["unauthorized", "store-unavailable"])
    }

    pub(super) fn of_operation(self) -> Self {
        self.takes(&["id"]).of_caller().fails(&["bad-request", "not-found", "gone"])
    }

    pub(super) fn follows(self) -> Self {
        self.takes(&["after", "pageSize", "Last-Event-ID", "lastEventId"])
            .answers("101", "It is a WebSocket from now on.", &[], Content::Nothing)
            .fails(&["bad-request", "quota-exceeded", "overloaded", "wrong-origin", "bad-upgrade"])
    }

    pub(super) fn submits(mut self) -> Self {
        (self.takes_body, self.tells_outcome, self.counts) = (true, true, true);
        self.in_group("Requests")
            .takes(&[
                "kind",
                "priority",
                "Prefer",
                "Operation-Timeout",
                "Idempotency-Key",
                "Callback-Url",
                "traceparent",
            ])
            .of_caller()
            .fails(&["bad-request", "not-json", "hostile-json", "unknown-kind", "too-slow", "too-large"])
            .fails(&["unsupported-media-type", "invalid-request", "idempotency-key-in-flight"])
            .fails(&["idempotency-key-reused", "callback-refused", "quota-exceeded"])
    }
}
