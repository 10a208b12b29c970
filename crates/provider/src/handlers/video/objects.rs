//! The object store: large data travels by claim check, as a URL into it.

use crate::config::ObjectsConfig;
use crate::handler::Failure;
use anyhow::{Context as _, bail};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Name;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use shared::problem::Problem;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio_util::io::StreamReader;
use url::Url;

/// Where handlers keep what they make; only this is ever deleted.
const OPERATIONS: &str = "operations";
/// How often old objects are looked for.
const PURGE_EVERY: Duration = Duration::from_mins(10);

/// Where videos are kept.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// What the URL of each object begins with; ends with a slash.
    base: Url,
    retention: Duration,
}

impl Objects {
    /// # Errors
    /// Why there is no store at `objects.url`.
    pub(crate) fn open(config: &ObjectsConfig) -> anyhow::Result<Self> {
        let (store, base) = match config.url.split_once("://") {
            Some(("file", folder)) => local(Path::new(folder)).with_context(|| format!("objects.url: {folder}"))?,
            Some(("s3", _)) => s3(&config.url).context("objects.url")?,
            _ => bail!("objects.url must be file://folder or s3://bucket/prefix"),
        };
        Ok(Self { store, base, retention: config.retention })
    }

    /// The object `file` of a request: the same each time the request is carried out.
    pub(super) fn name(identity: &str, file: &str) -> Name {
        Name::from_iter([OPERATIONS, identity, file])
    }

    pub(super) fn url(&self, name: &Name) -> String {
        format!("{}{name}", self.base)
    }

    fn find(&self, url: &str, pointer: &str) -> Result<Name, Failure> {
        let rest = url.strip_prefix(self.base.as_str()).ok_or_else(|| {
            Failure::invalid(
                pointer,
                format!("not in this provider's object store, whose URLs begin with {}", self.base),
            )
        })?;
        Name::from_url_path(rest).map_err(|error| Failure::invalid(pointer, format!("names no object: {error}")))
    }

    /// Copies the object at `url` into `file`.
    ///
    /// # Errors
    /// Permanent, at the JSON pointer of the URL, if there is no such object or it has more than `bytes_max` bytes.
    pub(super) async fn download(&self, url: &str, pointer: &str, file: &Path, bytes_max: u64) -> Result<(), Failure> {
        let name = self.find(url, pointer)?;
        let object = self.store.get(&name).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => Failure::invalid(pointer, "there is no such object"),
            error => failed(&error),
        })?;
        if object.meta.size > bytes_max {
            let detail = format!("the object has {} bytes, more than {bytes_max}", object.meta.size);
            return Err(Failure::invalid(pointer, detail));
        }
        let mut content = StreamReader::new(object.into_stream().map_err(std::io::Error::from));
        let mut file = File::create(file).await.map_err(|error| failed(&error))?;
        tokio::io::copy(&mut content, &mut file).await.map_err(|error| failed(&error))?;
        file.flush().await.map_err(|error| failed(&error))
    }

    /// Stores `file`, whole or not at all, in place of what had that name; its size in bytes.
    pub(super) async fn upload(&self, file: &Path, name: &Name) -> Result<u64, Failure> {
        let mut writer = BufWriter::new(Arc::clone(&self.store), name.clone());
        let copied = async {
            let copied = tokio::io::copy(&mut File::open(file).await?, &mut writer).await?;
            writer.shutdown().await?;
            std::io::Result::Ok(copied)
        };
        match copied.await {
            Ok(bytes) => Ok(bytes),
            Err(error) => {
                let _ = writer.abort().await;
                Err(failed(&error))
            }
        }
    }

    /// Deletes what is older than the retention, now and from time to time. Never returns.
    pub(crate) async fn keep(self) {
        loop {
            match self.purge().await {
                Ok(0) => {}
                Ok(objects) => tracing::info!(objects, "old objects deleted"),
                Err(error) => tracing::warn!(%error, "cannot delete old objects now"),
            }
            tokio::time::sleep(PURGE_EVERY).await;
        }
    }

    async fn purge(&self) -> object_store::Result<usize> {
        let oldest = Timestamp::now().as_second().saturating_sub_unsigned(self.retention.as_secs());
        let mut objects = self.store.list(Some(&Name::from(OPERATIONS)));
        let mut deleted = 0;
        while let Some(object) = objects.try_next().await? {
            if object.last_modified.timestamp() < oldest {
                self.store.delete(&object.location).await?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

fn local(folder: &Path) -> anyhow::Result<(Arc<dyn ObjectStore>, Url)> {
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    let base = Url::from_directory_path(&folder).map_err(|()| anyhow::anyhow!("no absolute path"))?;
    Ok((Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_automatic_cleanup(true)), base))
}

/// Credentials, region and endpoint come from the variables that S3 clients know, `AWS_ACCESS_KEY_ID` and so on.
fn s3(url: &str) -> anyhow::Result<(Arc<dyn ObjectStore>, Url)> {
    // Only the first call in a process can succeed, and any provider will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let base = Url::parse(&format!("{}/", url.trim_end_matches('/')))?;
    let store = AmazonS3Builder::from_env().with_url(url).build()?;
    Ok((Arc::new(PrefixStore::new(store, Name::from_url_path(base.path())?)), base))
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::Transient(Problem::new("object-store-failed", 503, "The object store failed", error.to_string()))
}
