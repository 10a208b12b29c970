//! Where outcomes may be sent to.

use super::address::Addresses;
use super::settings::WebhooksConfig;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;
use url::{Host, Url};

/// The longest URL, in bytes: it is stored and shown with the operation.
const URL_BYTES_MAX: usize = 2048;

/// One of `webhooks.allow_hosts`: a host, or with `*.` before it all hosts below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    host: String,
    below: bool,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, below) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        let host = Host::parse(name).map_err(|error| format!("{text:?} is no host such as example.com: {error}"))?;
        Ok(Self { host: host.to_string(), below })
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(Pattern { host, below }: Pattern) -> Self {
        if below { format!("*.{host}") } else { host }
    }
}

impl Pattern {
    fn fits(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match self.below {
            true => host.strip_suffix(&self.host).is_some_and(|before| before.len() > 1 && before.ends_with('.')),
            false => host == self.host,
        }
    }
}

/// The URLs that outcomes may be sent to. Names are not resolved here but where a connection is made, so that what is
/// judged is what is connected to.
#[derive(Debug)]
pub(crate) struct Targets {
    allow_http: bool,
    ports: Vec<u16>,
    hosts: Vec<Pattern>,
    pub(super) addresses: Arc<Addresses>,
}

impl Targets {
    pub(crate) fn new(config: &WebhooksConfig) -> anyhow::Result<Self> {
        Ok(Self {
            allow_http: config.allow_http,
            ports: config.ports.clone(),
            hosts: config.allow_hosts.clone(),
            addresses: Arc::new(Addresses::new(&config.allow_private)?),
        })
    }

    /// The URL, if outcomes may be sent there.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, text: &str) -> Result<Url, String> {
        if text.len() > URL_BYTES_MAX {
            return Err(format!("the URL has more than {URL_BYTES_MAX} bytes"));
        }
        let url = Url::parse(text).map_err(|error| format!("this is no absolute URL: {error}"))?;
        self.check_form(&url)?;
        self.check_host(&url)?;
        Ok(url)
    }

    fn check_form(&self, url: &Url) -> Result<(), String> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err("the scheme is https, not http".into()),
            _ => return Err("the scheme is https".into()),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user or password in the URL is not allowed; deliveries are signed".into());
        }
        if url.fragment().is_some() {
            return Err("a URL that is asked for has no fragment".into());
        }
        match url.port_or_known_default() {
            Some(port) if self.ports.contains(&port) => Ok(()),
            _ => Err(format!("the port is one of {:?}", self.ports)),
        }
    }

    fn check_host(&self, url: &Url) -> Result<(), String> {
        let (Some(host), Some(name)) = (url.host(), url.host_str()) else { return Err("the URL has no host".into()) };
        if !self.hosts.is_empty() && !self.hosts.iter().any(|pattern| pattern.fits(name)) {
            return Err(format!("the host {name} is none of those that are allowed here"));
        }
        let address = match host {
            Host::Ipv4(address) => IpAddr::V4(address),
            Host::Ipv6(address) => IpAddr::V6(address),
            Host::Domain(name) if is_localhost(name) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Host::Domain(_) => return Ok(()),
        };
        self.addresses.check(address).map_err(|what| format!("the host {name} is not a public address: {what}"))
    }
}

/// Names that are this machine wherever they are resolved (RFC 6761 section 6.3).
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULTS};

    fn targets(change: impl FnOnce(&mut WebhooksConfig)) -> Targets {
        let mut config: Config = shared::config::load(DEFAULTS, "REQUESTOR_UNIT_TEST", None).unwrap();
        change(&mut config.webhooks);
        Targets::new(&config.webhooks).unwrap()
    }

    #[test]
    fn public_urls_with_https_are_allowed() {
        let targets = targets(|_| {});
        for url in [
            "https://example.com/hook?token=1",
            "https://example.com.:8443",
            "https://8.8.8.8/",
            "https://[2606:4700:4700::1111]/",
        ] {
            assert!(targets.check(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn every_other_form_is_refused_with_a_reason() {
        let targets = targets(|_| {});
        for (url, reason) in [
            ("", "no absolute URL"),
            ("/hook", "no absolute URL"),
            ("http://example.com/", "https, not http"),
            ("ftp://example.com/", "scheme"),
            ("file:///etc/passwd", "scheme"),
            ("https://", "no absolute URL"),
            ("https://me@example.com/", "user or password"),
            ("https://:secret@example.com/", "user or password"),
            ("https://example.com/#top", "fragment"),
            ("https://example.com:22/", "port"),
            ("https://example.com:99999/", "no absolute URL"),
            ("https://localhost/", "loopback"),
            ("https://a.LOCALHOST./", "loopback"),
            ("https://0x7f000001/", "loopback"),
            ("https://0177.1/", "loopback"),
            ("https://2130706433/", "loopback"),
            ("https://１２７.0.0.1/", "loopback"),
            ("https://[::ffff:127.0.0.1]/", "global unicast"),
        ] {
            let error = targets.check(url).unwrap_err();
            assert!(error.contains(reason), "{url}: {error}");
        }
        assert!(targets.check(&format!("https://example.com/{}", "a".repeat(2048))).unwrap_err().contains("2048"));
    }

    #[test]
    fn what_may_be_sent_where_is_configured() {
        let inside = targets(|config| {
            config.allow_http = true;
            config.ports = vec![8080];
            config.allow_private = vec!["127.0.0.0/8".parse().unwrap()];
        });
        assert!(inside.check("http://localhost:8080/").is_ok());
        assert!(inside.check("http://10.0.0.1:8080/").is_err());
        let few =
            targets(|config| config.allow_hosts = vec!["*.example.com".parse().unwrap(), "one.org".parse().unwrap()]);
        for url in ["https://a.example.com/", "https://b.A.Example.com./", "https://one.org"] {
            assert!(few.check(url).is_ok(), "{url}");
        }
        for url in ["https://example.com/", "https://aexample.com/", "https://two.one.org/", "https://8.8.8.8/"] {
            assert!(few.check(url).unwrap_err().contains("none of those"), "{url}");
        }
    }
}
