use anyhow::Context;
use config::builder::DefaultState;
use config::{Config, ConfigBuilder, Environment, File, FileFormat};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use url::Url;

/// Loads a configuration: `defaults`, which are part of the binary, then `file`, then the environment.
///
/// `REQUESTOR_BROKER__URL` is the key `broker.url`, and `REQUESTOR_BROKER__URL_FILE` names a file that holds its
/// value, for secrets.
///
/// # Errors
/// In one line: which key, in which file or variable, is unknown or has a value that does not fit.
pub fn load<T: DeserializeOwned>(defaults: &str, prefix: &str, file: Option<&Path>) -> anyhow::Result<T> {
    load_from(defaults, prefix, file, environment(prefix)?)
}

fn load_from<T: DeserializeOwned>(
    defaults: &str,
    prefix: &str,
    file: Option<&Path>,
    environment: HashMap<String, String>,
) -> anyhow::Result<T> {
    let mut builder = Config::builder().add_source(File::from_str(defaults, FileFormat::Toml));
    if let Some(path) = file {
        builder = builder.add_source(File::from(path).format(FileFormat::Toml));
    }
    let names: Vec<_> = environment.keys().cloned().collect();
    // Without prefix_separator the variable would have to be REQUESTOR__BROKER__URL. Values are not parsed here:
    // that would turn the password 00123 into 123, and strings deserialise into numbers anyway.
    let variables = Environment::with_prefix(prefix).prefix_separator("_").separator("__").source(Some(environment));
    let without = read::<T>(builder.clone());
    match (read(builder.add_source(variables)), without) {
        (Ok(loaded), _) => Ok(loaded),
        (Err(error), Ok(_)) => anyhow::bail!("environment: {error} (set: {})", names.join(", ")),
        (Err(_), Err(error)) => match file {
            Some(path) => anyhow::bail!("{}: {error}", path.display()),
            None => anyhow::bail!("configuration: {error}"),
        },
    }
}

/// The error in one line: a TOML error comes with an excerpt of the file.
fn read<T: DeserializeOwned>(builder: ConfigBuilder<DefaultState>) -> Result<T, String> {
    let loaded = builder.build().and_then(Config::try_deserialize);
    loaded.map_err(|error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The variables that start with `prefix`, with those that end in `_FILE` replaced by what the file holds.
fn environment(prefix: &str) -> anyhow::Result<HashMap<String, String>> {
    let wanted = format!("{prefix}_");
    let mut variables = HashMap::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(&wanted)).map(str::to_owned) else { continue };
        let Ok(value) = value.into_string() else { anyhow::bail!("{name}: the value is not UTF-8") };
        match name.strip_suffix("_FILE") {
            Some(key) => {
                let secret = std::fs::read_to_string(&value).with_context(|| format!("{name}: cannot read {value}"))?;
                variables.insert(key.to_owned(), secret.trim_end_matches(['\r', '\n']).to_owned());
            }
            None => drop(variables.insert(name, value)),
        }
    }
    Ok(variables)
}

/// The variables that a child process may have: those whose names pass `may_have`. The service's own may hold
/// passwords.
pub fn environment_for_child(may_have: impl Fn(&str) -> bool) -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(&may_have)).collect()
}

/// A URL that may hold a password, which is never shown or logged. It may name several hosts, with commas between them.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Takes any text; who uses it checks it.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL with its password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A URL for each of its hosts: `amqp://me:secret@one:5672,two:5673/vhost` stands for two.
    #[must_use]
    pub fn each_host(&self) -> Vec<Self> {
        let Some((before, hosts, after)) = self.around_hosts() else { return vec![self.clone()] };
        hosts.split(',').map(|host| Self(format!("{before}{}{after}", host.trim()))).collect()
    }

    /// The text with its hosts apart: `amqp://me:secret@`, `one,two`, `/vhost`. None if it has no `://`.
    fn around_hosts(&self) -> Option<(&str, &str, &str)> {
        let start = self.0.find("://")? + 3;
        let authority = &self.0[start..];
        let end = start + authority.find(['/', '?', '#']).unwrap_or(authority.len());
        let hosts = self.0[start..end].rfind('@').map_or(start, |at| start + at + 1);
        Some((&self.0[..hosts], &self.0[hosts..end], &self.0[end..]))
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = |host: &Self| Url::parse(&host.0).is_ok_and(|url| !url.cannot_be_a_base());
        match self.around_hosts() {
            // A slash in a password ends the hosts before it.
            Some((before, hosts, after)) if !after.contains('@') && self.each_host().iter().all(url) => {
                let start = before.find("://").map_or(0, |at| at + 3);
                match before[start..].split_once(':') {
                    Some((user, _)) => write!(f, "{}{user}:***@{hosts}{after}", &before[..start]),
                    None => f.write_str(&self.0),
                }
            }
            // What is no URL may still be one with a password and a typing error.
            _ => f.write_str("(not a URL)"),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// Durations as people write them: `30s`, `10m`, `24h`. For `#[serde(with = "duration")]`.
pub mod duration {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Writes `30s`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    /// Reads `30s`.
    ///
    /// # Errors
    /// When it is not a duration with its unit.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map_err(D::Error::custom)
    }

    /// Reads `30s`, `500ms` or `24h`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text).map_err(|e| format!("{text:?} is no duration such as \"30s\" or \"24h\": {e}"))
    }
}

/// Lists as TOML arrays or, for the environment, as text with commas.
///
/// # Errors
/// When it is neither.
pub fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + FromStr<Err: fmt::Display>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Text(String),
        List(Vec<T>),
    }
    match Either::deserialize(deserializer)? {
        Either::List(list) => Ok(list),
        Either::Text(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| item.parse().map_err(|error| D::Error::custom(format!("{item:?}: {error}")))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        broker: Broker,
        #[serde(deserialize_with = "list")]
        kinds: Vec<String>,
        limits: HashMap<String, u32>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Broker {
        url: SecretUrl,
        queue_max: usize,
    }

    const DEFAULTS: &str = r#"
        kinds = ["echo"]
        [broker]
        url = "amqp://guest:guest@127.0.0.1:5672"
        queue_max = 10
        [limits]
        "order.place" = 3
    "#;

    fn sample(variables: &[(&str, &str)]) -> anyhow::Result<Sample> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        load_from(DEFAULTS, "SAMPLE", None, variables)
    }

    #[test]
    fn the_environment_overrides_the_defaults() {
        let set = [("SAMPLE_BROKER__QUEUE_MAX", "20"), ("SAMPLE_KINDS", "echo, order.place")];
        let config = sample(&set).unwrap();
        assert_eq!(config.broker.queue_max, 20);
        assert_eq!(config.kinds, ["echo", "order.place"]);
        assert_eq!(config.limits["order.place"], 3);
    }

    #[test]
    fn errors_name_the_key() {
        let unknown = sample(&[("SAMPLE_BROKER__URI", "x")]).unwrap_err().to_string();
        assert!(unknown.contains("uri") && !unknown.contains('\n'), "{unknown}");
        let wrong = sample(&[("SAMPLE_BROKER__QUEUE_MAX", "many")]).unwrap_err().to_string();
        assert!(wrong.contains("broker.queue_max"), "{wrong}");
    }

    #[test]
    fn passwords_keep_their_zeros_and_are_not_shown() {
        let config = sample(&[("SAMPLE_BROKER__URL", "amqp://me:00123@host")]).unwrap();
        assert_eq!(config.broker.url.expose(), "amqp://me:00123@host");
        assert_eq!(format!("{} {:?}", config.broker.url, config.broker.url).matches("00123").count(), 0);
        for typing_error in
            ["me:00123@host:x", "amqp://me:00123@one,two:x/v", "amqp://me:00/123@one", "amqp:me:00123@one"]
        {
            assert_eq!(SecretUrl::new(typing_error).to_string(), "(not a URL)");
        }
    }

    #[test]
    fn a_url_may_name_several_hosts() {
        let url = SecretUrl::new("amqp://me:00,123@one:5672,two, [::1]:5673/v?heartbeat=5");
        let each: Vec<_> = url.each_host().iter().map(|url| url.expose().to_owned()).collect();
        let expected = ["one:5672", "two", "[::1]:5673"].map(|host| format!("amqp://me:00,123@{host}/v?heartbeat=5"));
        assert_eq!(each, expected);
        assert_eq!(url.to_string(), "amqp://me:***@one:5672,two, [::1]:5673/v?heartbeat=5");
        for one in ["amqp://one", "sqlite://data/a,b.db", "sqlite:///data/a.db"] {
            assert_eq!(SecretUrl::new(one).each_host(), [SecretUrl::new(one)]);
            assert_eq!(SecretUrl::new(one).to_string(), one);
        }
    }
}
