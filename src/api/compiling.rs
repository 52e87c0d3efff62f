//! Compiling what callers write: filters and ordering keys. It takes milliseconds for the largest, so what is more than a line is long
//! work of its tenant.

use super::status::ApiError;
use crate::domain::ids::TenantId;
use crate::long_work;

/// Expressions of fewer bytes are compiled at once.
const AT_ONCE_BYTES: usize = 256;

/// Runs what compiles expressions of so many bytes.
pub(super) async fn compiling<T: Send + 'static>(
    tenant: TenantId,
    bytes: usize,
    compile: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = if bytes < AT_ONCE_BYTES { Some(compile()) } else { long_work::run(tenant, compile).await };
    done.ok_or_else(|| ApiError::internal("compile an expression", "it panicked"))
}
