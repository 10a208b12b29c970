use anyhow::Context;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, Url, redirect};
use serde_json::Value;
use std::time::Duration;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take, beyond what was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Events that are fetched at a time.
const EVENTS_A_PAGE: &str = "200";

/// A caller of the requestor's HTTP interface.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    pub(super) fn new(base: &str, key: Option<&str>) -> anyhow::Result<Self> {
        // Only the first call in a process can succeed, and any provider will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = Url::parse(base).with_context(|| format!("{base:?} is no URL"))?;
        anyhow::ensure!(matches!(base.scheme(), "http" | "https"), "{base} is not http:// or https://");
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).context("the API key")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .default_headers(headers)
            .build()?;
        Ok(Self { http, base })
    }

    /// Submits a request and returns the operation.
    pub(super) async fn submit(
        &self,
        kind: &str,
        json: String,
        timeout: Option<&str>,
        idempotency_key: Option<&str>,
    ) -> anyhow::Result<Value> {
        let mut request =
            self.http.post(self.url(&["v1", "requests", kind])?).header(CONTENT_TYPE, "application/json").body(json);
        if let Some(timeout) = timeout {
            request = request.header("operation-timeout", timeout);
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        self.json(request).await
    }

    /// The operation, once it has ended or `wait` seconds are over.
    pub(super) async fn operation(&self, id: &str, wait: u32) -> anyhow::Result<Value> {
        let mut url = self.url(&["v1", "operations", id])?;
        url.set_query(Some("redirect=false"));
        self.json(self.http.get(url).header("prefer", format!("wait={wait}"))).await
    }

    /// The result of an operation that has succeeded, with its headers.
    pub(super) async fn result(&self, id: &str) -> anyhow::Result<(HeaderMap, Vec<u8>)> {
        let response = self.send(self.http.get(self.url(&["v1", "operations", id, "result"])?)).await?;
        Ok((response.headers().clone(), response.bytes().await?.to_vec()))
    }

    /// Asks for an operation to be canceled, and returns it.
    pub(super) async fn cancel(&self, id: &str) -> anyhow::Result<Value> {
        self.json(self.http.post(self.url(&["v1", "operations", id, "cancel"])?)).await
    }

    /// Asks for another attempt of a failed operation, and returns it.
    pub(super) async fn retry(&self, id: &str, timeout: Option<&str>) -> anyhow::Result<Value> {
        let mut request = self.http.post(self.url(&["v1", "operations", id, "retry"])?);
        if let Some(timeout) = timeout {
            request = request.header("operation-timeout", timeout);
        }
        self.json(request).await
    }

    /// All that the event log of an operation holds.
    pub(super) async fn events(&self, id: &str) -> anyhow::Result<Vec<Value>> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().map_or(0, |last| last["number"].as_u64().unwrap_or_default());
            let mut url = self.url(&["v1", "operations", id, "events"])?;
            url.query_pairs_mut().append_pair("after", &after.to_string()).append_pair("pageSize", EVENTS_A_PAGE);
            let mut page = self.json(self.http.get(url)).await?;
            match page["events"].as_array_mut() {
                Some(events) if !events.is_empty() => all.append(events),
                _ => return Ok(all),
            }
        }
    }

    /// Opens the stream of events at `path`, from behind the event `last` on. The inner error may pass.
    pub(super) async fn stream(&self, path: &[&str], last: Option<&str>) -> anyhow::Result<anyhow::Result<Response>> {
        let mut request = self.http.get(self.url(path)?).header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let Ok(sent) = tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await else {
            return Ok(Err(anyhow::anyhow!("{} does not answer in time", self.base)));
        };
        let may_pass = sent.as_ref().map_or(true, |response| response.status().is_server_error());
        let answer = self.answer(sent).await;
        if may_pass { Ok(answer) } else { answer.map(Ok) }
    }

    /// A page of operations.
    pub(super) async fn list(&self, kind: Option<&str>, status: Option<&str>, limit: u32) -> anyhow::Result<Value> {
        let mut url = self.url(&["v1", "operations"])?;
        url.query_pairs_mut().append_pair("pageSize", &limit.to_string());
        for (name, value) in [("kind", kind), ("status", status)] {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        self.json(self.http.get(url)).await
    }

    /// All kinds, or all that is known of one.
    pub(super) async fn kinds(&self, kind: Option<&str>) -> anyhow::Result<Value> {
        let path = ["v1", "kinds"].into_iter().chain(kind).collect::<Vec<_>>();
        self.json(self.http.get(self.url(&path)?)).await
    }

    fn url(&self, segments: &[&str]) -> anyhow::Result<Url> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow::anyhow!("{} cannot be a base", self.base))?
            .pop_if_empty()
            .extend(segments);
        Ok(url)
    }

    async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        self.send(request).await?.json().await.context("the answer is no JSON")
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        self.answer(request.timeout(ANSWER_TIMEOUT).send().await).await
    }

    async fn answer(&self, sent: reqwest::Result<Response>) -> anyhow::Result<Response> {
        let response = sent.with_context(|| format!("{} does not answer; is the requestor running?", self.base))?;
        if response.status().is_client_error() || response.status().is_server_error() {
            let status = response.status();
            let problem: Value = response.json().await.unwrap_or_default();
            anyhow::bail!("{status}: {}", super::show::problem(&problem));
        }
        Ok(response)
    }
}
