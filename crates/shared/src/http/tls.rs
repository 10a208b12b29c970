use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::TlsAcceptor;

/// The section `[http.tls]`: files in PEM, both or none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate, followed by those that lead to an authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What TLS is spoken with, loaded again when its files change.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsConfig,
    modified: Modified,
    current: Arc<ServerConfig>,
}

type Modified = [Option<SystemTime>; 2];

impl TlsConfig {
    /// Whether TLS is spoken.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }

    /// Checks that the files can be used.
    ///
    /// # Errors
    /// Which key or file is wrong and why.
    pub fn validate(&self) -> anyhow::Result<()> {
        Tls::open(self).map(drop)
    }

    fn modified(&self) -> Modified {
        [&self.certificate, &self.key].map(|file| std::fs::metadata(file).and_then(|about| about.modified()).ok())
    }

    fn load(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let certificates = read("http.tls.certificate", &self.certificate, |file| {
            let all = CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>()?;
            anyhow::ensure!(!all.is_empty(), "there is no certificate in it");
            Ok(all)
        })?;
        let key = read("http.tls.key", &self.key, |file| Ok(PrivateKeyDer::from_pem_file(file)?))?;
        let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = versions.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = builder.with_single_cert(certificates, key).with_context(|| {
            let (certificate, key) = (self.certificate.display(), self.key.display());
            format!("http.tls.certificate {certificate} and http.tls.key {key} cannot be used together")
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read<T>(key: &str, file: &Path, how: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    how(file).with_context(|| format!("{key}: cannot use {}", file.display()))
}

impl Tls {
    /// None if the configuration names no files.
    pub(super) fn open(files: &TlsConfig) -> anyhow::Result<Option<Self>> {
        if !files.is_on() {
            anyhow::ensure!(files.key.as_os_str().is_empty(), "http.tls.key is set, and http.tls.certificate is not");
            return Ok(None);
        }
        anyhow::ensure!(!files.key.as_os_str().is_empty(), "http.tls.certificate is set, and http.tls.key is not");
        // Read before the files, so that what is written in between is noticed.
        let modified = files.modified();
        Ok(Some(Self { files: files.clone(), modified, current: files.load()? }))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current))
    }

    /// Loads the files if they were written since. What cannot be used, such as a new certificate whose key has not
    /// come yet, changes nothing.
    pub(super) fn refresh(&mut self) {
        let modified = self.files.modified();
        if modified == self.modified {
            return;
        }
        self.modified = modified;
        match self.files.load() {
            Ok(loaded) => {
                self.current = loaded;
                tracing::info!(certificate = %self.files.certificate.display(), "the new certificate is in use");
            }
            Err(error) => tracing::warn!("the new certificate cannot be used, the old one still is: {error:#}"),
        }
    }
}
