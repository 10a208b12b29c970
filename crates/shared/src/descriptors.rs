use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that are open beside connections of callers: stores, connections with the broker and with other services,
/// child processes.
const OTHERS: u64 = 256;

/// How many of the connections that are `wanted` this process has descriptors for, after raising its limit as far as
/// it may. Does nothing if there is room for all.
///
/// # Errors
/// When there is no room for any, or the system does not tell.
pub fn make_room(wanted: usize) -> anyhow::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    let needed = (wanted as u64).saturating_add(OTHERS);
    if soft >= needed {
        return Ok(wanted);
    }
    let limit = needed.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).context("cannot raise the limit of open files")?;
    let room = fitting(wanted, limit).with_context(|| {
        format!("at most {limit} files may be open, of which {OTHERS} are not for connections; raise it (ulimit -n)")
    })?;
    if room < wanted {
        tracing::warn!(
            "at most {limit} files may be open, so only {room} connections are taken at once instead of \
             http.limits.connections_max = {wanted}; allow {needed} open files (ulimit -n, LimitNOFILE)"
        );
    }
    Ok(room)
}

fn fitting(wanted: usize, limit: u64) -> Option<usize> {
    let room = limit.checked_sub(OTHERS).filter(|room| *room > 0)?;
    Some(usize::try_from(room).map_or(wanted, |room| room.min(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_the_store() {
        assert_eq!(fitting(12_000, 20_000), Some(12_000));
        assert_eq!(fitting(12_000, 1024), Some(768));
        assert_eq!(fitting(12_000, OTHERS), None);
        assert_eq!(fitting(12_000, 10), None);
    }
}
