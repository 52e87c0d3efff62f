//! `carillon admin`: tenants, apps, API keys, publisher identities and the audit log, over the internal port.

use chrono::{DateTime, Utc};
use clap::{Subcommand, ValueEnum};
use comfy_table::Cell;
use serde::Serialize;

use super::client::{InternalArgs, InternalClient, Purpose, call};
use super::error::CliError;
use super::output::{Output, note, short, time};
use super::values::parse_time;
use crate::domain::quotas::Quota;
use crate::proto::internal::{
    ApiKey, App, AuditRecord, CreateApiKeyRequest, CreateAppRequest, CreatePublisherIdentityRequest,
    CreateTenantRequest, DeleteAppRequest, DeletePublisherIdentityRequest, GetTenantRequest, ListApiKeysRequest,
    ListAppsRequest, ListAuditRecordsRequest, ListPublisherIdentitiesRequest, ListTenantsRequest, PublisherIdentity,
    RevokeApiKeyRequest, Role as ProtoRole, Tenant, UpdateTenantRequest,
};
use crate::wire::admin::{quota_of_proto, quotas_to_proto};
use pbjson_types::FieldMask;

const EXAMPLES: &str = "Examples:
  carillon admin tenants create acme
  carillon admin tenants update acme --quota publish_events_per_second=500 --quota backlog_max=default
  carillon admin apps create --tenant acme shop
  carillon admin keys create --tenant acme --role subscriber --app shop --expires 2027-01-31T00:00:00Z
  carillon admin publishers create --tenant acme uri:spiffe://example.org/shop --event-type 'CUSTOM_ORDER_*'
  carillon admin audit --tenant acme --limit 20";

/// The largest page the server gives.
const PAGE: i32 = 1000;

/// Administer tenants, apps, API keys and publisher identities
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AdminArgs {
    #[command(subcommand)]
    command: Command,
    /// Slug of the tenant [default: that of client.toml]
    #[arg(long, env = "CARILLON_TENANT", global = true, value_name = "SLUG")]
    tenant: Option<String>,
    #[command(flatten)]
    internal: InternalArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tenants: the isolation boundary
    #[command(
        subcommand,
        after_help = "Examples:
  carillon admin tenants list
  carillon admin tenants create acme"
    )]
    Tenants(Tenants),
    /// Apps: namespaces inside a tenant
    #[command(
        subcommand,
        after_help = "Examples:
  carillon admin apps list --tenant acme
  carillon admin apps create --tenant acme shop"
    )]
    Apps(Apps),
    /// API keys: credentials of the public port
    #[command(
        subcommand,
        after_help = "Examples:
  carillon admin keys list --tenant acme
  carillon admin keys create --tenant acme --role viewer"
    )]
    Keys(Keys),
    /// Publisher identities: certificates that may publish
    #[command(
        subcommand,
        after_help = "Examples:
  carillon admin publishers list --tenant acme
  carillon admin publishers create --tenant acme dns:shop.example.org"
    )]
    Publishers(Publishers),
    /// Show recorded changes, newest first
    #[command(after_help = "Examples:
  carillon admin audit --tenant acme --limit 20
  carillon admin audit --tenant acme --limit 0 --json | jq -r .action")]
    Audit {
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
    },
}

#[derive(Debug, Subcommand)]
enum Tenants {
    /// List tenants
    #[command(after_help = "Examples:
  carillon admin tenants list
  carillon admin tenants list --json | jq -r .slug")]
    List,
    /// Show one tenant with its quotas
    #[command(after_help = "Examples:
  carillon admin tenants get acme")]
    Get {
        /// Slug of the tenant
        slug: String,
    },
    /// Create a tenant
    #[command(after_help = "Examples:
  carillon admin tenants create acme --display-name 'Acme Corporation'")]
    Create {
        /// Slug: a-z, 0-9 and -, starting with a letter
        slug: String,
        /// Name for people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        display_name: String,
    },
    /// Change a tenant's name or quotas
    #[command(after_help = "Examples:
  carillon admin tenants update acme --display-name 'Acme'
  carillon admin tenants update acme --quota publish_events_per_second=500 --quota backlog_max=default")]
    Update {
        /// Slug of the tenant
        slug: String,
        /// Name for people
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        /// A quota, such as backlog_max=10000, or backlog_max=default for the server's; may be given several times
        #[arg(long = "quota", value_name = "NAME=VALUE", value_parser = parse_quota)]
        quotas: Vec<(Quota, Option<u64>)>,
    },
}

/// Reads `NAME=VALUE`, or `NAME=default`.
fn parse_quota(text: &str) -> Result<(Quota, Option<u64>), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    let quota =
        Quota::of_name(name).ok_or_else(|| format!("the quotas are {}", Quota::ALL.map(Quota::name).join(", ")))?;
    let number = || value.replace('_', "").parse().map_err(|_| "the value must be a number, or default".to_owned());
    Ok((quota, if value == "default" { None } else { Some(number()?) }))
}

#[derive(Debug, Subcommand)]
enum Apps {
    /// List the tenant's apps
    #[command(after_help = "Examples:
  carillon admin apps list --tenant acme")]
    List,
    /// Create an app
    #[command(after_help = "Examples:
  carillon admin apps create --tenant acme shop --display-name 'Web shop'")]
    Create {
        /// Slug: a-z, 0-9 and -, starting with a letter
        slug: String,
        /// Name for people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        display_name: String,
    },
    /// Delete an app that has no subscriptions
    #[command(after_help = "Examples:
  carillon admin apps delete --tenant acme shop")]
    Delete {
        /// Slug of the app
        slug: String,
    },
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// List the tenant's API keys, newest first
    #[command(after_help = "Examples:
  carillon admin keys list --tenant acme")]
    List,
    /// Create an API key; its secret is shown only once
    #[command(after_help = "Examples:
  carillon admin keys create --tenant acme --role admin
  carillon admin keys create --tenant acme --role subscriber --app shop --expires 2027-01-31T00:00:00Z")]
    Create {
        /// What it may do; each role includes those before it
        #[arg(long)]
        role: Role,
        /// Limit it to this app
        #[arg(long, value_name = "SLUG", default_value = "", hide_default_value = true)]
        app: String,
        /// Name for people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        display_name: String,
        /// Refuse it after this time (RFC 3339)
        #[arg(long, value_parser = parse_time, value_name = "TIME")]
        expires: Option<DateTime<Utc>>,
    },
    /// Revoke an API key
    #[command(after_help = "Examples:
  carillon admin keys revoke --tenant acme key_...")]
    Revoke {
        /// Id of the key, `key_...`
        #[arg(value_name = "KEY_ID")]
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum Publishers {
    /// List the tenant's publisher identities
    #[command(after_help = "Examples:
  carillon admin publishers list --tenant acme")]
    List,
    /// Register a certificate identity that may publish
    #[command(after_help = "Examples:
  carillon admin publishers create --tenant acme dns:shop.example.org
  carillon admin publishers create --tenant acme uri:spiffe://example.org/shop --event-type 'CUSTOM_ORDER_*'")]
    Create {
        /// The certificate's name: `uri:spiffe://...` or `dns:name`
        subject: String,
        /// A type it may publish, or a prefix that ends in *; may be given several times [default: every type]
        #[arg(long = "event-type", value_name = "TYPE")]
        event_types: Vec<String>,
    },
    /// Remove a publisher identity
    #[command(after_help = "Examples:
  carillon admin publishers delete --tenant acme pub_...")]
    Delete {
        /// Id of the identity, `pub_...`
        #[arg(value_name = "IDENTITY_ID")]
        id: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Read and watch
    Viewer,
    /// Also subscribe and retry
    Subscriber,
    /// Also declare event types and schemas
    Developer,
    /// Everything inside the tenant
    Admin,
}

/// Runs the subcommand.
pub async fn run(args: AdminArgs, output: Output) -> Result<(), CliError> {
    let tenant = || args.internal.tenant(args.tenant.clone());
    let connect = || args.internal.connect(Purpose::Admin);
    match args.command {
        Command::Tenants(command) => tenants(&connect().await?, output, command).await,
        Command::Apps(command) => apps(&connect().await?, output, tenant()?, command).await,
        Command::Keys(command) => keys(&connect().await?, output, tenant()?, command).await,
        Command::Publishers(command) => publishers(&connect().await?, output, tenant()?, command).await,
        Command::Audit { limit } => audit(&connect().await?, output, tenant()?, limit).await,
    }
}

async fn tenants(client: &InternalClient, output: Output, command: Tenants) -> Result<(), CliError> {
    let mut admin = client.admin();
    let found = match command {
        Tenants::List => {
            let mut all = Vec::new();
            let mut request = ListTenantsRequest { page_size: PAGE, page_token: String::new() };
            loop {
                let answer = call("ListTenants", admin.list_tenants(client.request(request.clone()))).await?;
                all.extend(answer.tenants);
                request.page_token = answer.next_page_token;
                if request.page_token.is_empty() {
                    break all;
                }
            }
        }
        Tenants::Get { slug } => {
            let request = client.request(GetTenantRequest { tenant: slug });
            return show_tenant(output, call("GetTenant", admin.get_tenant(request)).await?.tenant);
        }
        Tenants::Update { slug, display_name, quotas } => {
            let mut paths: Vec<String> = quotas.iter().map(|(quota, _)| format!("quotas.{}", quota.name())).collect();
            paths.extend(display_name.is_some().then(|| "display_name".to_owned()));
            if paths.is_empty() {
                return Err(CliError::Usage("say what is to change: --display-name or --quota".to_owned()));
            }
            let value = |wanted| quotas.iter().rev().find(|(quota, _)| *quota == wanted).and_then(|(_, value)| *value);
            let tenant = Tenant {
                slug,
                display_name: display_name.unwrap_or_default(),
                quotas: Some(quotas_to_proto(value)),
                ..Default::default()
            };
            let update_mask = Some(FieldMask { paths });
            let request =
                client.request(UpdateTenantRequest { tenant: Some(tenant), update_mask, ..Default::default() });
            return show_tenant(output, call("UpdateTenant", admin.update_tenant(request)).await?.tenant);
        }
        Tenants::Create { slug, display_name } => {
            let request = client.request(CreateTenantRequest { slug, display_name, ..Default::default() });
            call("CreateTenant", admin.create_tenant(request)).await?.tenant.into_iter().collect()
        }
    };
    rows(output, &["TENANT", "ID", "NAME", "CREATED"], &found, |tenant: &Tenant| {
        vec![tenant.slug.clone(), tenant.id.clone(), tenant.display_name.clone(), time(tenant.create_time.as_ref())]
    })
}

/// One tenant, and what applies to it; what is set for it is marked.
fn show_tenant(output: Output, tenant: Option<Tenant>) -> Result<(), CliError> {
    let Some(tenant) = tenant else { return Ok(()) };
    if output.is_json() {
        return output.document(&tenant);
    }
    let mut fields = vec![
        ("tenant", tenant.slug.clone()),
        ("id", tenant.id.clone()),
        ("name", tenant.display_name.clone()),
        ("created", time(tenant.create_time.as_ref())),
    ];
    let (own, all) = (tenant.quotas.unwrap_or_default(), tenant.effective_quotas.unwrap_or_default());
    for quota in Quota::ALL {
        let set = if quota_of_proto(&own, quota).is_some() { " (set)" } else { "" };
        let value = quota_of_proto(&all, quota).map(|value| format!("{value}{set}")).unwrap_or_default();
        fields.push((quota.name(), value));
    }
    output.fields(&fields)
}

async fn apps(client: &InternalClient, output: Output, tenant: String, command: Apps) -> Result<(), CliError> {
    let mut admin = client.admin();
    let found = match command {
        Apps::List => {
            let mut all = Vec::new();
            let mut request = ListAppsRequest { tenant, page_size: PAGE, page_token: String::new() };
            loop {
                let answer = call("ListApps", admin.list_apps(client.request(request.clone()))).await?;
                all.extend(answer.apps);
                request.page_token = answer.next_page_token;
                if request.page_token.is_empty() {
                    break all;
                }
            }
        }
        Apps::Create { slug, display_name } => {
            let request = client.request(CreateAppRequest { tenant, slug, display_name, ..Default::default() });
            call("CreateApp", admin.create_app(request)).await?.app.into_iter().collect()
        }
        Apps::Delete { slug } => {
            let request = client.request(DeleteAppRequest { tenant, app: slug, ..Default::default() });
            let answer = call("DeleteApp", admin.delete_app(request)).await?;
            return removed(output, &answer, "deleted");
        }
    };
    rows(output, &["APP", "ID", "TENANT", "NAME", "CREATED"], &found, |app: &App| {
        let created = time(app.create_time.as_ref());
        vec![app.slug.clone(), app.id.clone(), app.tenant.clone(), app.display_name.clone(), created]
    })
}

async fn keys(client: &InternalClient, output: Output, tenant: String, command: Keys) -> Result<(), CliError> {
    let mut admin = client.admin();
    let found = match command {
        Keys::List => {
            let mut all = Vec::new();
            let mut request = ListApiKeysRequest { tenant, page_size: PAGE, page_token: String::new() };
            loop {
                let answer = call("ListApiKeys", admin.list_api_keys(client.request(request.clone()))).await?;
                all.extend(answer.api_keys);
                request.page_token = answer.next_page_token;
                if request.page_token.is_empty() {
                    break all;
                }
            }
        }
        Keys::Create { role, app, display_name, expires } => {
            let role = match role {
                Role::Viewer => ProtoRole::Viewer,
                Role::Subscriber => ProtoRole::Subscriber,
                Role::Developer => ProtoRole::Developer,
                Role::Admin => ProtoRole::Admin,
            };
            let (role, expire_time) = (role.into(), expires.map(Into::into));
            let request = client.request(CreateApiKeyRequest {
                tenant,
                app,
                role,
                display_name,
                expire_time,
                ..Default::default()
            });
            let answer = call("CreateApiKey", admin.create_api_key(request)).await?;
            if output.is_json() {
                return output.document(&answer);
            }
            let key = answer.api_key.unwrap_or_default();
            output.fields(&[("key", key.id), ("secret", answer.secret)])?;
            note("the secret is shown only now: send it as `authorization: Bearer ...`, or set CARILLON_API_KEY");
            return Ok(());
        }
        Keys::Revoke { id } => {
            let request = client.request(RevokeApiKeyRequest { tenant, api_key_id: id, ..Default::default() });
            call("RevokeApiKey", admin.revoke_api_key(request)).await?.api_key.into_iter().collect()
        }
    };
    rows(output, &["KEY", "ROLE", "APP", "NAME", "CREATED", "EXPIRES", "REVOKED"], &found, |key: &ApiKey| {
        vec![
            key.id.clone(),
            short(key.role().as_str_name(), "ROLE_").to_owned(),
            if key.app.is_empty() { "(all)".to_owned() } else { key.app.clone() },
            key.display_name.clone(),
            time(key.create_time.as_ref()),
            time(key.expire_time.as_ref()),
            time(key.revoke_time.as_ref()),
        ]
    })
}

async fn publishers(
    client: &InternalClient,
    output: Output,
    tenant: String,
    command: Publishers,
) -> Result<(), CliError> {
    let mut admin = client.admin();
    let found = match command {
        Publishers::List => {
            let mut all = Vec::new();
            let mut request = ListPublisherIdentitiesRequest { tenant, page_size: PAGE, page_token: String::new() };
            loop {
                let page = client.request(request.clone());
                let answer = call("ListPublisherIdentities", admin.list_publisher_identities(page)).await?;
                all.extend(answer.publisher_identities);
                request.page_token = answer.next_page_token;
                if request.page_token.is_empty() {
                    break all;
                }
            }
        }
        Publishers::Create { subject, event_types } => {
            let request =
                client.request(CreatePublisherIdentityRequest { tenant, subject, event_types, ..Default::default() });
            let answer = call("CreatePublisherIdentity", admin.create_publisher_identity(request)).await?;
            answer.publisher_identity.into_iter().collect()
        }
        Publishers::Delete { id } => {
            let request = client.request(DeletePublisherIdentityRequest {
                tenant,
                publisher_identity_id: id,
                ..Default::default()
            });
            let answer = call("DeletePublisherIdentity", admin.delete_publisher_identity(request)).await?;
            return removed(output, &answer, "removed: the next publish with it is refused");
        }
    };
    rows(output, &["IDENTITY", "SUBJECT", "EVENT TYPES", "CREATED"], &found, |identity: &PublisherIdentity| {
        let types =
            if identity.event_types.is_empty() { "(every type)".to_owned() } else { identity.event_types.join(", ") };
        vec![identity.id.clone(), identity.subject.clone(), types, time(identity.create_time.as_ref())]
    })
}

async fn audit(client: &InternalClient, output: Output, tenant: String, limit: usize) -> Result<(), CliError> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut records = Vec::new();
    let mut request = ListAuditRecordsRequest { tenant, page_size: 0, page_token: String::new() };
    loop {
        request.page_size = i32::try_from(limit - records.len()).unwrap_or(PAGE).min(PAGE);
        let page = client.request(request.clone());
        let answer = call("ListAuditRecords", client.admin().list_audit_records(page)).await?;
        records.extend(answer.audit_records);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() || records.len() >= limit {
            break;
        }
    }
    records.truncate(limit);
    rows(output, &["TIME", "ACTOR", "ACTION", "RESOURCE"], &records, |record: &AuditRecord| {
        vec![time(record.time.as_ref()), record.actor.clone(), record.action.clone(), record.resource.clone()]
    })?;
    if !request.page_token.is_empty() {
        note("more exist: --limit 0 shows all");
    }
    Ok(())
}

/// Says that something is gone: to people beside the result, to programs with the answer.
fn removed(output: Output, answer: &impl Serialize, said: &str) -> Result<(), CliError> {
    if output.is_json() {
        return output.document(answer);
    }
    note(said);
    Ok(())
}

/// Writes things as rows for people, or as a document each for programs.
fn rows<T: Serialize>(
    output: Output,
    header: &[&str],
    things: &[T],
    cells: impl Fn(&T) -> Vec<String>,
) -> Result<(), CliError> {
    if output.is_json() {
        return things.iter().try_for_each(|thing| output.document(thing));
    }
    output.table(header, things.iter().map(|thing| cells(thing).into_iter().map(Cell::new).collect()).collect())
}
