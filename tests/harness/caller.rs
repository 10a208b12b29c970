use super::eventually;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode};
use serde_json::Value;

/// A caller of the requestor's HTTP interface: one method an endpoint.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `http://127.0.0.1:port`.
    pub base: String,
    http: reqwest::Client,
    key: Option<String>,
}

impl Caller {
    /// A caller of the requestor at `base`.
    #[must_use]
    pub fn new(base: String) -> Self {
        Self { base, http: super::http_client(), key: None }
    }

    /// The caller with this API key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.into()), ..self.clone() }
    }

    /// Its API key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// A request to `path`, for headers and bodies of the test's own.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// `POST /v1/requests/{kind}` without a body yet, for headers of the test's own.
    pub fn post(&self, kind: &str) -> reqwest::RequestBuilder {
        self.request("POST", &format!("/v1/requests/{kind}")).header(CONTENT_TYPE, "application/json")
    }

    /// `POST /v1/requests/{kind}`; whatever comes of it.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn try_submit(&self, kind: &str, body: &Value) -> reqwest::Result<Response> {
        self.post(kind).body(body.to_string()).send().await
    }

    /// `POST /v1/requests/{kind}`, which must be answered 202; the operation's id.
    ///
    /// # Panics
    /// When it is not.
    pub async fn submit(&self, kind: &str, body: &Value) -> String {
        let response = self.try_submit(kind, body).await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, StatusCode::ACCEPTED, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// `GET path`.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await.unwrap()
    }

    /// `GET path` as JSON.
    ///
    /// # Panics
    /// When the answer is none.
    pub async fn get_json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    /// The operation as it is now.
    ///
    /// # Panics
    /// When there is none.
    pub async fn operation(&self, id: &str) -> Value {
        let operation = self.get_json(&format!("/v1/operations/{id}?redirect=false")).await;
        assert_eq!(operation["id"], id, "{operation}");
        operation
    }

    /// The operation once it has ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn ended(&self, id: &str) -> Value {
        self.reached(id, &["Succeeded", "Failed", "Canceled"]).await
    }

    /// The operation once it has one of `statuses`.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn reached(&self, id: &str, statuses: &[&str]) -> Value {
        eventually(&format!("{id} is {statuses:?}"), async || {
            let request = self.request("GET", &format!("/v1/operations/{id}?redirect=false"));
            // A requestor that was killed is away for a while.
            let response = request.send().await.map_err(|error| error.to_string())?;
            let operation: Value = response.json().await.map_err(|error| error.to_string())?;
            match operation["status"].as_str() {
                Some(status) if statuses.contains(&status) => Ok(operation),
                _ => Err(operation.to_string()),
            }
        })
        .await
    }

    /// The result of an operation that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn result(&self, id: &str) -> Value {
        let operation = self.ended(id).await;
        assert_eq!(operation["status"], "Succeeded", "{operation}");
        self.get_json(&format!("/v1/operations/{id}/result")).await
    }

    /// Waits until every operation has ended.
    pub async fn none_open(&self) {
        eventually("no operation is open", async || {
            for status in ["NotStarted", "Running"] {
                let page = self.get_json(&format!("/v1/operations?status={status}&pageSize=1")).await;
                if page["operations"] != serde_json::json!([]) {
                    return Err(page.to_string());
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until the requestor is connected.
    pub async fn ready(&self) {
        eventually("the requestor is ready", async || {
            let response = self.request("GET", "/readyz").send().await.map_err(|error| error.to_string())?;
            if response.status() == 200 { Ok(()) } else { Err(response.text().await.unwrap_or_default()) }
        })
        .await;
    }

    /// Waits until `kind` can be asked for.
    pub async fn knows(&self, kind: &str) {
        eventually(&format!("{kind} can be asked for"), async || {
            match self.get(&format!("/v1/kinds/{kind}")).await.status() {
                StatusCode::OK => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
    }

    /// The sum of a counter of `/metrics` over those of its labels that contain `label`.
    ///
    /// # Panics
    /// When there are no metrics.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}
