//! What is done from time to time: leases are renewed, and what is old is removed.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;

use super::JobsError;
use super::inner::{Inner, KEY_LIFE, LEASE};

/// How often old jobs are looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// Jobs that are removed before others have their turn at the store.
const PAGE: usize = 100;

/// Starts both tasks; they end with the last handle on the jobs.
pub(super) fn start(inner: &Arc<Inner>) {
    tokio::spawn(renew(Arc::downgrade(inner)));
    tokio::spawn(sweep_again(Arc::downgrade(inner)));
}

async fn renew(inner: Weak<Inner>) {
    loop {
        sleep(LEASE / 3).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.live.open().is_empty() {
            continue;
        }
        if let Err(error) = inner.store.renew(inner.lease()).await {
            tracing::warn!(%error, "cannot renew the leases of the running jobs");
        }
    }
}

async fn sweep_again(inner: Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        match strong.sweep().await {
            Ok(0) => {}
            Ok(jobs) => tracing::info!(jobs, "removed the jobs whose time was over"),
            Err(error) => tracing::warn!(%error, "cannot remove the jobs whose time is over"),
        }
        drop(strong);
        sleep(SWEEP).await;
    }
}

impl Inner {
    /// Removes the ended jobs and the idempotency keys whose time is over; says how many jobs.
    pub(super) async fn sweep(&self) -> Result<usize, JobsError> {
        let now = self.now();
        let before = |age: SignedDuration| now.checked_sub(age).unwrap_or(Timestamp::MIN);
        self.store.forget_keys(before(SignedDuration::try_from(KEY_LIFE).unwrap_or(SignedDuration::MAX))).await?;
        if self.options.retention_days == 0 {
            return Ok(0);
        }
        let oldest = before(SignedDuration::from_hours(24 * i64::from(self.options.retention_days)));
        let mut removed = 0;
        // Those that cannot be removed are left for the next time, and do not keep the others.
        let mut stuck = HashSet::new();
        loop {
            let most = PAGE + stuck.len();
            let page = self.store.ended_before(oldest, most).await?;
            let last = page.len() < most;
            for id in page {
                if stuck.contains(&id) {
                    continue;
                }
                match self.remove(&id).await {
                    Ok(()) => removed += 1,
                    Err(error) => {
                        tracing::warn!(job = id, %error, "cannot remove a job whose time is over");
                        stuck.insert(id);
                    }
                }
            }
            if last {
                return Ok(removed);
            }
        }
    }
}
