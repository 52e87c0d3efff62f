//! `carillon event-types`: the catalogue, its schemas, and checking data against them.

use clap::{Subcommand, ValueEnum};
use comfy_table::Cell;

use super::client::{PublicArgs, PublicClient, call};
use super::error::CliError;
use super::output::{Output, excerpt, note, short, state_cell, time};
use super::values::{read_input, read_text};
use crate::proto::public::{
    AddEventTypeSchemaRequest, CheckCompatibilityRequest, CheckCompatibilityResponse, CreateEventTypeRequest,
    DeleteEventTypeRequest, EventPhase, EventType, EventTypeOrigin, EventTypeSchema, GetEventTypeRequest,
    GetEventTypeResponse, ListEventTypeSchemasRequest, ListEventTypesRequest, SchemaCompatibility,
    UndeleteEventTypeRequest, UpdateEventTypeRequest, ValidateEventRequest, ValidateEventResponse,
};

const EXAMPLES: &str = r#"Examples:
  carillon event-types list --origin custom
  carillon event-types create CUSTOM_ORDER_PLACED --description 'An order was placed' --schema @order.schema.json
  carillon event-types add-schema CUSTOM_ORDER_PLACED @order-v2.schema.json
  carillon event-types check-schema CUSTOM_ORDER_PLACED @order-v2.schema.json --mode backward
  carillon event-types validate CUSTOM_ORDER_PLACED --data '{"order": 17}'
  carillon event-types schemas CUSTOM_ORDER_PLACED --version 1"#;

/// The largest page of types or subscribers that the server gives.
const PAGE: i32 = 1000;

/// List, declare and retire event types and their schemas
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EventTypesArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    public: PublicArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List event types: system types first, then the tenant's own
    #[command(after_help = "Examples:
  carillon event-types list
  carillon event-types list --origin custom --deleted")]
    List {
        /// Only this origin
        #[arg(long)]
        origin: Option<Origin>,
        /// Also retired types
        #[arg(long)]
        deleted: bool,
    },
    /// Show one event type and its subscribers
    #[command(after_help = "Examples:
  carillon event-types get USER_CREATE --app shop")]
    Get {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
        /// Only subscribers of this app
        #[arg(long, value_name = "SLUG", default_value = "", hide_default_value = true)]
        app: String,
    },
    /// Declare a custom event type
    #[command(after_help = "Examples:
  carillon event-types create CUSTOM_ORDER_PLACED
  carillon event-types create CUSTOM_ORDER_PLACED --description 'An order was placed' --schema @order.schema.json")]
    Create {
        /// Name, starting with CUSTOM_
        #[arg(value_name = "TYPE")]
        name: String,
        /// When its listeners run
        #[arg(long, default_value = "post")]
        phase: Phase,
        /// Name for people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        display_name: String,
        /// What the event means
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// JSON Schema of the data: JSON text, @file, or - for standard input [default: any data is accepted]
        #[arg(long, value_name = "SCHEMA")]
        schema: Option<String>,
        /// What further schema versions must keep of the latest one [default: none]
        #[arg(long, value_name = "MODE")]
        compatibility: Option<Mode>,
    },
    /// Change the display name, description or compatibility mode of a custom event type
    #[command(after_help = "Examples:
  carillon event-types update CUSTOM_ORDER_PLACED --compatibility backward")]
    Update {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
        /// Name for people
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        /// What the event means
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// What further schema versions must keep of the latest one
        #[arg(long, value_name = "MODE")]
        compatibility: Option<Mode>,
        /// Fail where the type's etag is another one
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// Retire a custom event type; its events stay readable
    #[command(after_help = "Examples:
  carillon event-types delete CUSTOM_ORDER_PLACED --allow-missing")]
    Delete {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
        /// Succeed also where it does not exist
        #[arg(long)]
        allow_missing: bool,
        /// Fail where the type's etag is another one
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// Bring a retired event type back
    #[command(after_help = "Examples:
  carillon event-types undelete CUSTOM_ORDER_PLACED")]
    Undelete {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
    },
    /// List the schema versions of an event type, or print one
    #[command(after_help = "Examples:
  carillon event-types schemas CUSTOM_ORDER_PLACED
  carillon event-types schemas CUSTOM_ORDER_PLACED --version 1")]
    Schemas {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
        /// Print this version's document and nothing else
        #[arg(long, value_name = "N")]
        version: Option<i32>,
    },
    /// Register the next schema version of a custom event type
    #[command(after_help = "Examples:
  carillon event-types add-schema CUSTOM_ORDER_PLACED @order-v2.schema.json")]
    AddSchema {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
        /// The JSON Schema: JSON text, @file, or - for standard input
        #[arg(value_name = "SCHEMA")]
        schema: String,
    },
    /// Say what a schema would break, without registering it
    #[command(after_help = "Examples:
  carillon event-types check-schema CUSTOM_ORDER_PLACED @order-v2.schema.json --mode backward")]
    CheckSchema {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
        /// The JSON Schema: JSON text, @file, or - for standard input
        #[arg(value_name = "SCHEMA")]
        schema: String,
        /// What it must keep [default: the type's own mode, or full where that is none]
        #[arg(long, value_name = "MODE")]
        mode: Option<Mode>,
        /// Version to compare with; 0 is the latest
        #[arg(long, default_value_t = 0, value_name = "N")]
        schema_version: i32,
    },
    /// Check data against a schema without publishing it
    #[command(after_help = r#"Examples:
  carillon event-types validate CUSTOM_ORDER_PLACED --data '{"order": 17}'
  carillon event-types validate CUSTOM_ORDER_PLACED < order.json"#)]
    Validate {
        /// Name of the event type
        #[arg(value_name = "TYPE")]
        name: String,
        /// The data: JSON text, @file, or - for standard input
        #[arg(long, short, value_name = "DATA", default_value = "-")]
        data: String,
        /// Schema version; 0 is the latest
        #[arg(long, default_value_t = 0, value_name = "N")]
        schema_version: i32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Origin {
    System,
    Custom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// Before the event exists; listeners can abort it
    Pre,
    /// After the event is committed
    Post,
}

/// What a further schema version must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Nothing
    None,
    /// It accepts all data that the latest version accepts
    Backward,
    /// The latest version accepts all data that it accepts
    Forward,
    /// Both
    Full,
}

impl Mode {
    fn to_proto(mode: Option<Self>) -> i32 {
        let mode = match mode {
            None => SchemaCompatibility::Unspecified,
            Some(Self::None) => SchemaCompatibility::None,
            Some(Self::Backward) => SchemaCompatibility::Backward,
            Some(Self::Forward) => SchemaCompatibility::Forward,
            Some(Self::Full) => SchemaCompatibility::Full,
        };
        mode.into()
    }
}

/// Runs the subcommand.
pub async fn run(args: EventTypesArgs, output: Output) -> Result<(), CliError> {
    let client = args.public.connect().await?;
    let mut types = client.event_types();
    let event_type = match args.command {
        Command::List { origin, deleted } => return list(&client, output, origin, deleted).await,
        Command::Get { name, app } => return get(&client, output, name, app).await,
        Command::Schemas { name, version } => return schemas(&client, output, name, version).await,
        Command::Create { name, phase, display_name, description, schema, compatibility } => {
            let phase = match phase {
                Phase::Pre => EventPhase::Pre,
                Phase::Post => EventPhase::Post,
            };
            let schema = schema.as_deref().map(read_text).transpose()?.unwrap_or_default();
            let (phase, request_id) = (phase.into(), String::new());
            let compatibility = Mode::to_proto(compatibility);
            let request =
                CreateEventTypeRequest { name, phase, display_name, description, schema, request_id, compatibility };
            call("CreateEventType", types.create_event_type(client.request(request))).await?.event_type
        }
        Command::Update { name, display_name, description, compatibility, etag } => {
            let given = [
                ("display_name", display_name.is_some()),
                ("description", description.is_some()),
                ("compatibility", compatibility.is_some()),
            ];
            let paths: Vec<_> = given.iter().filter(|(_, given)| *given).map(|(path, _)| (*path).to_owned()).collect();
            if paths.is_empty() {
                return Err(CliError::Usage(
                    "nothing to change: give --display-name, --description or --compatibility".to_owned(),
                ));
            }
            let event_type = EventType {
                name,
                etag,
                display_name: display_name.unwrap_or_default(),
                description: description.unwrap_or_default(),
                compatibility: Mode::to_proto(compatibility),
                ..EventType::default()
            };
            let update_mask = Some(pbjson_types::FieldMask { paths });
            let request = UpdateEventTypeRequest { event_type: Some(event_type), update_mask, ..Default::default() };
            call("UpdateEventType", types.update_event_type(client.request(request))).await?.event_type
        }
        Command::Delete { name, allow_missing, etag } => {
            let request = DeleteEventTypeRequest { name, allow_missing, etag, ..Default::default() };
            let answer = call("DeleteEventType", types.delete_event_type(client.request(request))).await?;
            if answer.event_type.is_none() {
                note("it did not exist");
                return if output.is_json() { output.document(&answer) } else { Ok(()) };
            }
            answer.event_type
        }
        Command::Undelete { name } => {
            let request = UndeleteEventTypeRequest { name, ..Default::default() };
            call("UndeleteEventType", types.undelete_event_type(client.request(request))).await?.event_type
        }
        Command::AddSchema { name, schema } => {
            let schema = read_text(&schema)?;
            let request = AddEventTypeSchemaRequest { event_type: name, schema, request_id: String::new() };
            let answer = call("AddEventTypeSchema", types.add_event_type_schema(client.request(request))).await?;
            if output.is_json() {
                return output.document(&answer);
            }
            let version = answer.schema.map(|schema| schema.version).unwrap_or_default();
            return output.fields(&[("registered version", version.to_string())]);
        }
        Command::CheckSchema { name, schema, mode, schema_version } => {
            let (schema, mode) = (read_text(&schema)?, Mode::to_proto(mode));
            let request = CheckCompatibilityRequest { event_type: name, schema, mode, schema_version };
            let answer = call("CheckCompatibility", types.check_compatibility(client.request(request))).await?;
            return show_compatibility(output, &answer);
        }
        Command::Validate { name, data, schema_version } => {
            let request = ValidateEventRequest { event_type: name, schema_version, data: read_input(&data)?.into() };
            let answer = call("ValidateEvent", types.validate_event(client.request(request))).await?;
            return show_validation(output, &answer);
        }
    };
    let event_type = event_type.ok_or(CliError::Answer { rpc: "EventTypeService", what: "event type" })?;
    if output.is_json() { output.document(&event_type) } else { show_event_type(output, &event_type) }
}

/// Every schema version of an event type, newest first.
pub async fn all_schemas(client: &PublicClient, name: &str) -> Result<Vec<EventTypeSchema>, CliError> {
    let mut request = ListEventTypeSchemasRequest {
        event_type: name.to_owned(),
        page_size: 100,
        ..ListEventTypeSchemasRequest::default()
    };
    let mut schemas = Vec::new();
    loop {
        let page = client.request(request.clone());
        let answer = call("ListEventTypeSchemas", client.event_types().list_event_type_schemas(page)).await?;
        schemas.extend(answer.schemas);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            return Ok(schemas);
        }
    }
}

async fn list(client: &PublicClient, output: Output, origin: Option<Origin>, deleted: bool) -> Result<(), CliError> {
    let origin = match origin {
        None => EventTypeOrigin::Unspecified,
        Some(Origin::System) => EventTypeOrigin::System,
        Some(Origin::Custom) => EventTypeOrigin::Custom,
    };
    let mut request = ListEventTypesRequest {
        page_size: PAGE,
        origin: origin.into(),
        show_deleted: deleted,
        ..ListEventTypesRequest::default()
    };
    let mut types = Vec::new();
    loop {
        let page = client.request(request.clone());
        let answer = call("ListEventTypes", client.event_types().list_event_types(page)).await?;
        types.extend(answer.event_types);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if output.is_json() {
        return types.iter().try_for_each(|event_type| output.document(event_type));
    }
    let rows = types.iter().map(|event_type| {
        vec![
            Cell::new(&event_type.name),
            Cell::new(short(event_type.origin().as_str_name(), "EVENT_TYPE_ORIGIN_")),
            Cell::new(short(event_type.phase().as_str_name(), "EVENT_PHASE_")),
            state_cell(short(event_type.state().as_str_name(), "EVENT_TYPE_STATE_")),
            Cell::new(event_type.latest_schema_version),
            Cell::new(excerpt(&event_type.description, 60)),
        ]
    });
    output.table(&["EVENT TYPE", "ORIGIN", "PHASE", "STATE", "SCHEMA", "DESCRIPTION"], rows.collect())
}

async fn get(client: &PublicClient, output: Output, name: String, app: String) -> Result<(), CliError> {
    let mut request = GetEventTypeRequest { name, app, page_size: PAGE, page_token: String::new() };
    let mut whole: Option<GetEventTypeResponse> = None;
    loop {
        let page = client.request(request.clone());
        let mut answer = call("GetEventType", client.event_types().get_event_type(page)).await?;
        request.page_token = std::mem::take(&mut answer.next_page_token);
        match &mut whole {
            Some(whole) => whole.subscribers.extend(answer.subscribers),
            None => whole = Some(answer),
        }
        if request.page_token.is_empty() {
            break;
        }
    }
    let whole = whole.unwrap_or_default();
    if output.is_json() {
        return output.document(&whole);
    }
    let missing = CliError::Answer { rpc: "GetEventType", what: "event type" };
    let mut fields = fields(whole.event_type.as_ref().ok_or(missing)?);
    fields.push(("subscribers", whole.total_subscribers.to_string()));
    output.fields(&fields)?;
    if whole.subscribers.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = whole.subscribers.iter().map(|subscriber| {
        vec![
            Cell::new(&subscriber.subscription_id),
            Cell::new(&subscriber.app),
            Cell::new(&subscriber.target_kind),
            Cell::new(&subscriber.display_name),
        ]
    });
    output.table(&["SUBSCRIPTION", "APP", "TARGET", "NAME"], rows.collect())
}

async fn schemas(client: &PublicClient, output: Output, name: String, version: Option<i32>) -> Result<(), CliError> {
    let schemas = all_schemas(client, &name).await?;
    if let Some(version) = version {
        let schema = schemas.iter().find(|schema| schema.version == version);
        let schema = schema.ok_or_else(|| CliError::Result(format!("{name} has no schema version {version}")))?;
        return if output.is_json() { output.document(schema) } else { output.line(&schema.schema) };
    }
    if output.is_json() {
        return schemas.iter().try_for_each(|schema| output.document(schema));
    }
    let rows = schemas.iter().map(|schema| {
        vec![
            Cell::new(schema.version),
            Cell::new(time(schema.create_time.as_ref())),
            Cell::new(schema.schema.len()),
            Cell::new(excerpt(&schema.schema, 60)),
        ]
    });
    output.table(&["VERSION", "REGISTERED", "BYTES", "DOCUMENT"], rows.collect())
}

fn show_event_type(output: Output, event_type: &EventType) -> Result<(), CliError> {
    output.fields(&fields(event_type))
}

/// What there is to tell of an event type.
fn fields(event_type: &EventType) -> Vec<(&'static str, String)> {
    // The server gives a type without a name for people its own name.
    let named = event_type.display_name != event_type.name;
    vec![
        ("event type", event_type.name.clone()),
        ("name", if named { event_type.display_name.clone() } else { String::new() }),
        ("description", event_type.description.clone()),
        ("origin", short(event_type.origin().as_str_name(), "EVENT_TYPE_ORIGIN_").to_owned()),
        ("phase", short(event_type.phase().as_str_name(), "EVENT_PHASE_").to_owned()),
        ("state", short(event_type.state().as_str_name(), "EVENT_TYPE_STATE_").to_owned()),
        ("schema version", event_type.latest_schema_version.to_string()),
        ("compatibility", short(event_type.compatibility().as_str_name(), "SCHEMA_COMPATIBILITY_").to_owned()),
        ("created", time(event_type.create_time.as_ref())),
        ("updated", time(event_type.update_time.as_ref())),
        ("retired", time(event_type.delete_time.as_ref())),
        ("etag", event_type.etag.clone()),
    ]
}

/// Writes what is wrong with the data; data that may not be published ends in an error, so that scripts notice.
fn show_validation(output: Output, answer: &ValidateEventResponse) -> Result<(), CliError> {
    if output.is_json() {
        output.document(answer)?;
    } else if answer.valid {
        output.line(&match answer.schema_version {
            0 => "valid: the type has no schema".to_owned(),
            version => format!("valid against version {version}"),
        })?;
    } else {
        let rows = answer.violations.iter().map(|violation| {
            let place = if violation.data_pointer.is_empty() { "(the whole)" } else { &violation.data_pointer };
            vec![Cell::new(place), Cell::new(&violation.message), Cell::new(&violation.schema_pointer)]
        });
        output.table(&["DATA", "WHAT IS WRONG", "SCHEMA"], rows.collect())?;
    }
    if answer.valid {
        return Ok(());
    }
    Err(CliError::Result(match answer.schema_version {
        0 => "the data cannot be published".to_owned(),
        version => format!("the data breaks version {version} of the schema"),
    }))
}

/// Writes what a schema would break; one that breaks something ends in an error, so that scripts notice.
fn show_compatibility(output: Output, answer: &CheckCompatibilityResponse) -> Result<(), CliError> {
    let mode = short(answer.mode().as_str_name(), "SCHEMA_COMPATIBILITY_");
    if output.is_json() {
        output.document(answer)?;
    } else if answer.compatible {
        output.line(&match answer.schema_version {
            0 => "compatible: the type has no schema yet".to_owned(),
            version => format!("compatible with version {version} ({mode})"),
        })?;
    } else {
        let rows = answer.violations.iter().map(|one| {
            let place = if one.pointer.is_empty() { "(the whole)" } else { &one.pointer };
            let direction = short(one.direction().as_str_name(), "SCHEMA_COMPATIBILITY_");
            let decided = if one.undecided { "undecided" } else { "breaks" };
            vec![Cell::new(place), Cell::new(direction), Cell::new(decided), Cell::new(&one.message)]
        });
        output.table(&["SCHEMA", "DIRECTION", "VERDICT", "WHY"], rows.collect())?;
    }
    if answer.compatible {
        return Ok(());
    }
    Err(CliError::Result(format!("the schema is not compatible with version {} ({mode})", answer.schema_version)))
}
