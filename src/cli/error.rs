//! Every way in which a command can fail, and how a person is told: the cause, the server's reason, the fields that are
//! wrong, and the way out.
//!
//! Last stage of the command line: a command returns a [`CliError`], `main` prints it and exits with its code. Nothing
//! here may print a credential.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use rustls::AlertDescription;
use tonic::{Code, Status};
use tonic_types::{PreconditionViolation, StatusExt as _};

use super::client::Identity;
use super::output::human;
use super::plain::plain;
use crate::app::AppError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line asks for something that makes no sense; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// The operation, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A file can be read but makes no sense.
    #[error("{} is not usable: {reason}", path.display())]
    FileContent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without its content.
        reason: String,
    },
    /// The server cannot be reached.
    #[error("cannot connect to {url}: {cause}")]
    Connect {
        /// Where to.
        url: String,
        /// The innermost cause.
        cause: String,
        /// What a person can do about it.
        way_out: String,
    },
    /// The server answered a call with an error.
    #[error("{rpc} failed: {}", message_of(status))]
    Call {
        /// The RPC's name.
        rpc: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// The server left out something that its contract promises.
    #[error("the answer of {rpc} holds no {what}; are client and server of the same release?")]
    Answer {
        /// The RPC's name.
        rpc: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// Standard output does not take the result.
    #[error("cannot write the result")]
    Output(#[source] io::Error),
    /// A listening socket cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// What `carillon dev` needs cannot be made ready.
    #[error(transparent)]
    Dev(#[from] crate::dev::Error),
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The log cannot start.
    #[error(transparent)]
    Telemetry(#[from] crate::telemetry::TelemetryError),
    /// The server cannot start.
    #[error(transparent)]
    App(#[from] AppError),
    /// Signals cannot be listened for.
    #[error("signals cannot be listened for")]
    Signals(#[source] io::Error),
    /// The work was done, and its result is not good; the message says what is missing.
    #[error("{0}")]
    Result(String),
    /// The event is published, and listeners have failed for good; exit code 3.
    #[error(
        "the event is published, but {0} as dead letter; `carillon invocations list --state dead-lettered` shows why"
    )]
    DeadLettered(String),
    /// The event is published, and the wait for its listeners was over first; exit code 4.
    #[error(
        "the event is published, but not every invocation has ended within {}; `carillon invocations list --event {event}` \
         shows them", human(*waited)
    )]
    StillRunning {
        /// The event.
        event: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The event is accepted and delayed, and the wait was over before it was published; exit code 4.
    #[error(
        "the event is not published yet: it is due at {due}; `carillon invocations list --event {event}` shows its invocations \
         from then on, `carillon events cancel {event}` takes it back"
    )]
    StillDelayed {
        /// The event.
        event: String,
        /// When it is due.
        due: String,
    },
}

impl CliError {
    /// Wraps a failed file operation with its verb and path, for use in `map_err`.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// Wraps the answer of a call, for use in `map_err`.
    pub fn call(rpc: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Call { rpc, status: Box::new(status) }
    }

    /// Wraps what went wrong when a connection was made: the innermost cause, and what helps.
    pub fn connect(url: &str, identity: Option<&Identity>, error: &(dyn StdError + 'static)) -> Self {
        let cause = match tls_error(error) {
            Some(rustls::Error::AlertReceived(alert)) => {
                format!("the server refuses the client certificate ({})", refusal(*alert))
            }
            Some(tls) => tls.to_string(),
            None => chain(error).last().map(ToString::to_string).unwrap_or_default(),
        };
        Self::Connect { url: url.to_owned(), cause, way_out: way_out_of_connecting(error, identity) }
    }

    /// What the process ends with: 2 where the command line is wrong, 3 and 4 for the outcomes of `publish --wait`, 0 where the reader
    /// of the output has left, else 1.
    pub fn exit_code(&self) -> ExitCode {
        self.exit_number().into()
    }

    /// The number of the exit code.
    pub fn exit_number(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::DeadLettered(_) => 3,
            Self::StillRunning { .. } | Self::StillDelayed { .. } => 4,
            // `carillon watch | head` has done what was asked.
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => 1,
        }
    }

    /// The server's reason, such as `EVENT_TYPE_NOT_FOUND`, where the server gave one.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Call { status, .. } => status.get_details_error_info().map(|info| info.reason),
            _ => None,
        }
    }

    /// Tells a person on standard error: what failed and why, then one indented line per detail, then the way out.
    pub fn report(&self) {
        if matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        let red = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
        anstream::eprintln!("{red}error:{red:#} {}", plain(&with_causes(self)));
        for line in self.details() {
            anstream::eprintln!("  {}", plain(&line));
        }
        if let Some(way_out) = self.way_out() {
            let green = Style::new().fg_color(Some(AnsiColor::Green.into()));
            anstream::eprintln!("{green}help:{green:#} {}", plain(way_out));
        }
    }

    /// What the server says beside its message.
    fn details(&self) -> Vec<String> {
        let Self::Call { status, .. } = self else { return Vec::new() };
        let details = status.get_error_details();
        let mut lines = Vec::new();
        if let Some(info) = details.error_info() {
            lines.push(format!("reason: {} ({:?})", info.reason, status.code()));
            let mut metadata: Vec<_> = info.metadata.iter().filter(|(_, value)| !value.is_empty()).collect();
            metadata.sort();
            lines.extend(metadata.into_iter().map(|(name, value)| format!("{name}: {value}")));
        } else {
            lines.push(format!("code: {:?}", status.code()));
        }
        let fields = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        // What concerns the request as a whole is in the message already.
        let fields = fields.iter().filter(|field| !field.field.is_empty());
        lines.extend(fields.map(|field| format!("{}: {}", field.field, field.description)));
        if let Some(resource) = details.resource_info() {
            lines.push(format!("{}: {}", resource.resource_type, resource.resource_name));
        }
        let quotas = details.quota_failure().map(|quota| quota.violations.as_slice()).unwrap_or_default();
        lines.extend(quotas.iter().map(|quota| format!("{}: {}", quota.subject, quota.description)));
        let conditions =
            details.precondition_failure().map(|failure| failure.violations.as_slice()).unwrap_or_default();
        lines.extend(conditions.iter().map(|PreconditionViolation { r#type: kind, subject, description }| {
            // Of a PRE event's listener the kind is its verdict; of other failures it repeats the reason.
            let repeats = details.error_info().is_some_and(|info| info.reason == *kind);
            let said = [Some(subject), Some(kind).filter(|_| !repeats), Some(description)];
            let said: Vec<_> = said.into_iter().flatten().filter(|one| !one.is_empty()).map(String::as_str).collect();
            said.join(": ")
        }));
        if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
            lines.push(format!("try again in {} ms", delay.as_millis()));
        }
        lines
    }

    /// What a person can do about it.
    pub fn way_out(&self) -> Option<&str> {
        Some(match self {
            Self::Connect { way_out, .. } => way_out,
            Self::Call { status, .. } if broke(status) => {
                "does the server speak TLS on that port? Then the address starts with https://; the internal port (--internal-url) \
                 always does, and takes only client certificates that its authority has signed (--cert, --key-file)"
            }
            Self::Call { rpc, status } => {
                return match status.get_details_error_info() {
                    // Not a feature but a whole method is missing: the port is the other one, or the server is older.
                    Some(info) if info.metadata.contains_key("method") => way_out_without_reason(status.code()),
                    Some(info) if info.reason == "CREDENTIAL_INVALID" && is_internal(rpc) => Some(
                        "the certificate's name (URI or DNS) must be registered: an operator's in the server's configuration, a \
                             publisher's by `carillon admin publishers create`; --cert and --key-file show another certificate",
                    ),
                    Some(info) => way_out_of_part(status).or_else(|| way_out_of(&info.reason)),
                    None => way_out_without_reason(status.code()),
                };
            }
            Self::App(AppError::Listen(error)) if error.source.kind() == io::ErrorKind::AddrInUse => {
                "another program has the port: end it, or choose another one with the setting named above (of `carillon dev` with \
                 --port, --internal-port and --ops-port); 0 takes a free one"
            }
            Self::FileContent { .. } => "correct the file, or name another one",
            _ => return None,
        })
    }
}

/// An error with its causes in one line. Some causes repeat what the error around them says already: these are left out.
pub fn with_causes(error: &(dyn StdError + 'static)) -> String {
    chain(error).fold(String::new(), |text, cause| match cause.to_string() {
        said if text.is_empty() => said,
        said if text.contains(&said) => text,
        said => format!("{text}: {said}"),
    })
}

/// True where no answer came, because the connection ended: such a status is made here, and has a cause.
fn broke(status: &Status) -> bool {
    matches!(status.code(), Code::Cancelled | Code::Unknown | Code::Unavailable | Code::Internal)
        && status.source().is_some()
        && !chain(status).any(<dyn StdError>::is::<tonic::TimeoutExpired>)
}

fn message_of(status: &Status) -> String {
    let message = status.message();
    if broke(status) { format!("the connection ended before an answer came ({message})") } else { message.to_owned() }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The TLS error in a chain; input and output errors do not name what they hold as their source.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    chain(error).find_map(|cause| {
        let held = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        held.and_then(|held| held.downcast_ref()).or_else(|| cause.downcast_ref())
    })
}

/// What a person can do about a connection that was not made.
fn way_out_of_connecting(error: &(dyn StdError + 'static), identity: Option<&Identity>) -> String {
    let shown = identity.map_or_else(
        || "give one with --cert and --key-file".to_owned(),
        |identity| format!("look at {}", identity.cert.display()),
    );
    match tls_error(error) {
        Some(rustls::Error::AlertReceived(_)) => format!(
            "the server accepts only a client certificate that its client authority has signed, that is in its time of validity, \
             and that is for client authentication: {shown}"
        ),
        Some(rustls::Error::InvalidCertificate(_)) => {
            "the server's certificate is not trusted: --ca names the file of the authority that has signed it, and the address must \
             hold the name that is in it"
                .to_owned()
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "the port does not speak TLS: is it another one, or does the address start with http://?".to_owned()
        }
        _ => "is the server running? `carillon dev` starts one here; --url, --internal-url or --dir name another one".to_owned(),
    }
}

/// Why a server refuses a certificate.
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet".to_owned(),
        AlertDescription::UnknownCA => "another authority has signed it".to_owned(),
        AlertDescription::CertificateRequired => "none was shown".to_owned(),
        AlertDescription::CertificateRevoked => "it is revoked".to_owned(),
        AlertDescription::UnsupportedCertificate => "it is not for client authentication".to_owned(),
        other => format!("TLS alert {other:?}"),
    }
}

/// True for a call of the internal port, where certificates are the credential.
fn is_internal(rpc: &str) -> bool {
    let administered = ["Tenant", "App", "ApiKey", "PublisherIdentit", "AuditRecord"];
    rpc.starts_with("Publish") || administered.iter().any(|what| rpc.contains(what))
}

/// What a person can do about a reason; none where the message says it already.
fn way_out_of(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "CREDENTIAL_INVALID" => {
            "give an API key with --api-key or CARILLON_API_KEY (public port), or a registered certificate with --cert and \
             --key-file (internal port); `carillon dev` leaves both in ./.carillon, where commands in the same folder find them"
        }
        "ROLE_INSUFFICIENT" => "use a key with a higher role: `carillon admin keys create --role ...` makes one",
        "EVENT_TYPE_NOT_FOUND" => {
            "`carillon event-types list` shows the types there are; `carillon event-types create CUSTOM_...` makes one"
        }
        "EVENT_TYPE_FORBIDDEN" => {
            "register the types for the identity: `carillon admin publishers create --event-type ...`"
        }
        "SCHEMA_VIOLATION" => {
            "`carillon event-types schemas TYPE` shows the schema; `carillon event-types validate TYPE --data ...` checks data \
             without publishing it"
        }
        "SUBSCRIPTION_NOT_FOUND" => "`carillon subscriptions list` shows the subscriptions there are",
        "NOT_SUBSCRIBED" => {
            "`carillon subscriptions list` shows the subscriptions there are; with --allow-missing it is no failure"
        }
        "APP_NOT_FOUND" => {
            "`carillon admin apps list` shows the apps there are; `carillon admin apps create` makes one"
        }
        "TENANT_NOT_FOUND" => "`carillon admin tenants list` shows the tenants there are",
        "ALREADY_SUBSCRIBED" => "`carillon subscriptions update` changes the subscription named above",
        "ADDRESS_BLOCKED" => {
            "private and loopback addresses, and plain http, must be allowed in the server's configuration; `carillon dev` \
             allows loopback"
        }
        "FILTER_INVALID" => {
            "filters are CEL over `event` and `data`, such as: data.amount > 100 && event.subject == \"a\""
        }
        "CURSOR_EXPIRED" => "the log before that place is gone: start with --from earliest",
        "CURSOR_FOREIGN" | "CURSOR_MALFORMED" | "CURSOR_AHEAD" => {
            "use a cursor that this server gave to this tenant, or start with --from earliest"
        }
        "ETAG_MISMATCH" => "somebody else changed it meanwhile: read it again, then repeat with its new etag",
        "REQUEST_ID_REUSED" => "use a new key for a new body; a retry must send exactly the same body",
        "SERVER_DRAINING" | "STORE_UNAVAILABLE" => "try again; a retry with the same idempotency key is safe",
        // Of a change the message says how it is asked for again.
        "DEADLINE" => "--deadline sets a longer wait",
        "PRE_LISTENER_UNAVAILABLE" | "PRE_DEADLINE" => {
            "the listeners are named above; a new try takes a new key, and --pre-timeout gives them more time"
        }
        "ENRICH_PATH_TAKEN" => "choose another --enrich, or disable the subscription that has it",
        "STORAGE_FULL" => "the server's database is full or read-only: its operator must make room",
        "NOT_IMPLEMENTED" => "the changelog lists what the server's release does not build yet",
        _ => return None,
    })
}

/// What a part of a delivery policy was given without.
fn way_out_of_part(status: &Status) -> Option<&'static str> {
    let bad = status.get_details_bad_request()?;
    let missing = bad.field_violations.iter().find(|violation| violation.description.starts_with("is required"))?;
    Some(match missing.field.strip_prefix("subscription.delivery_policy.")? {
        "circuit_breaker.failure_threshold" => "give --circuit-failures too: the subscription has no circuit breaker",
        "ordering.key" => "give --ordering-key too: the subscription has no order",
        _ => return None,
    })
}

/// What a person can do where something between here and the server answered, or the contract was broken.
fn way_out_without_reason(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Unimplemented => {
            "this port does not serve the call: Publish and Admin are on the internal port (--internal-url), the rest is on \
             the public one (--url)"
        }
        Code::Unavailable | Code::Unknown => {
            "the connection broke; where it is the internal port, check that the certificate is of its authority"
        }
        Code::DeadlineExceeded | Code::Cancelled => "the answer took too long: --deadline sets a longer wait",
        _ => return None,
    })
}
