//! The private cluster with a real Postgres: made, used, stopped, killed, found again. As root these run through the
//! account.

use super::*;
use crate::dev::cluster::is_alive;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::str::FromStr;

use rustix::process::Pid;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

/// How long a change that a process announces to nobody may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(30);

fn search() -> Search {
    let path = ["/usr/local/bin", "/usr/bin"].map(PathBuf::from).into();
    Search::system(path, Some(Path::new(env!("CARGO_MANIFEST_DIR")).join(".carillon/postgres")))
}

/// A folder that the account Postgres runs as may enter.
fn open_folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("carillon").tempdir_in(SHORT_FOLDER).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

async fn connect(url: &str) -> PgConnection {
    PgConnectOptions::from_str(url).unwrap().connect().await.unwrap()
}

async fn one<T>(connection: &mut PgConnection, query: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query(query).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test]
async fn a_cluster_is_made_used_stopped_and_found_again() {
    let dir = open_folder();
    let postgres = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap();
    let mut connection = connect(&postgres.url()).await;
    for (query, expected) in [
        ("SELECT current_user::text", "carillon"),
        ("SELECT current_database()::text", "carillon"),
        ("SHOW fsync", "on"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW full_page_writes", "on"),
        ("SHOW listen_addresses", ""),
        ("SHOW server_encoding", "UTF8"),
        ("SHOW shared_buffers", "128MB"),
        ("SHOW jit", "off"),
        ("SELECT rolsuper::text FROM pg_roles WHERE rolname = current_user", "false"),
        ("SELECT setting::text FROM pg_settings WHERE name = 'unix_socket_permissions'", "0700"),
    ] {
        assert_eq!(one::<String>(&mut connection, query).await, expected, "{query}");
    }
    sqlx::query("CREATE TABLE kept (n bigint)").execute(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO kept VALUES (7)").execute(&mut connection).await.unwrap();
    let mut owner = connect(&postgres.owner_url("postgres")).await;
    assert_eq!(
        one::<String>(&mut owner, "SELECT rolsuper::text FROM pg_roles WHERE rolname = current_user").await,
        "true"
    );

    let places = postgres.places().clone();
    assert_eq!(places.base, fs::canonicalize(dir.path()).unwrap().join("pg"));
    assert_eq!(fs::metadata(&places.socket_dir).unwrap().permissions().mode() & 0o777, 0o700);
    if let Some(account) = &places.account {
        assert_ne!(fs::metadata(&places.data).unwrap().uid(), 0, "the data belongs to {}", account.name);
    }
    let pid = postgres.server_pid().unwrap();
    // Connections that are open do not hold up the end.
    postgres.stop().await.unwrap();
    assert!(!is_alive(Pid::from_raw(pid.try_into().unwrap()).unwrap()));
    assert!(PidFile::read(&places.data).is_none());
    assert!(connection.ping().await.is_err());

    let again = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap();
    assert_eq!(one::<i64>(&mut connect(&again.url()).await, "SELECT n FROM kept").await, 7);
    again.stop().await.unwrap();
}

#[tokio::test]
async fn a_second_owner_is_refused_by_name_and_a_guest_leaves_the_server_alone() {
    let dir = open_folder();
    let first = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap();
    match PrivatePostgres::start(&search(), Options::new(dir.path())).await {
        Err(Error::AlreadyRunning { pid, .. }) => assert_eq!(pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    let options = Options { when_running: WhenRunning::Share, ..Options::new(dir.path()) };
    let guest = PrivatePostgres::start(&search(), options).await.unwrap();
    assert_eq!((guest.url(), guest.server_pid()), (first.url(), None));
    guest.stop().await.unwrap();
    connect(&first.url()).await.ping().await.unwrap();
    first.stop().await.unwrap();
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_and_the_stale_pid_file_is_no_obstacle() {
    let dir = open_folder();
    let mut postgres = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap();
    let mut connection = connect(&postgres.url()).await;
    sqlx::query("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n").execute(&mut connection).await.unwrap();
    postgres.kill().await.unwrap();
    assert!(postgres.places().data.join("postmaster.pid").exists());
    postgres.restart().await.unwrap();
    let mut connection = connect(&postgres.url()).await;
    assert_eq!(one::<i64>(&mut connection, "SELECT count(*) FROM kept").await, 1000);

    // The same again with a new owner, and a process id in the file that is another living program's: this one.
    postgres.kill().await.unwrap();
    let file = postgres.places().data.join("postmaster.pid");
    let stale = fs::read_to_string(&file).unwrap();
    let (_, rest) = stale.split_once('\n').unwrap();
    fs::write(&file, format!("{}\n{rest}", std::process::id())).unwrap();
    drop(postgres);
    let postgres = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap();
    assert_eq!(one::<i64>(&mut connect(&postgres.url()).await, "SELECT count(*) FROM kept").await, 1000);
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_left_behind_is_ended_by_the_next_start() {
    let dir = open_folder();
    let mut postgres = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap();
    // What a killed carillon leaves when its watchdog is killed with it: a server, and a lock that nobody holds.
    let mut orphan = postgres.server.take().unwrap();
    orphan.watchdog.kill().await.unwrap();
    drop(postgres);
    let again = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap();
    let note = format!("Ended a server (process {}) that a killed carillon left behind.", orphan.pid.as_raw_nonzero());
    assert!(again.places().notes.contains(&note), "{:?}", again.places().notes);
    assert!(timeout(SEEN_WITHIN, orphan.child.wait()).await.unwrap().unwrap().success(), "it closed in good order");
    connect(&again.url()).await.ping().await.unwrap();
    again.stop().await.unwrap();
}

#[tokio::test]
async fn the_watchdog_ends_the_server_and_removes_a_throwaway_when_its_owner_is_gone() {
    let mut postgres = PrivatePostgres::throwaway(&search()).await.unwrap();
    connect(&postgres.url()).await.ping().await.unwrap();
    let dir = postgres.places().dir.clone();
    // The end of this pipe is all that the watchdog ever learns of its owner's end.
    let server = postgres.server.as_mut().unwrap();
    drop(server.watchdog.stdin.take());
    timeout(SEEN_WITHIN, server.child.wait()).await.expect("the server ends").unwrap();
    timeout(SEEN_WITHIN, server.watchdog.wait()).await.expect("the watchdog ends").unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_throwaway_syncs_and_goes_with_its_value() {
    let postgres = PrivatePostgres::throwaway(&search()).await.unwrap();
    assert_eq!(one::<String>(&mut connect(&postgres.url()).await, "SHOW fsync").await, "on");
    let dir = postgres.places().dir.clone();
    let pid = Pid::from_raw(postgres.server_pid().unwrap().try_into().unwrap()).unwrap();
    drop(postgres);
    assert!(!dir.exists() && !is_alive(pid));
}

#[tokio::test]
async fn a_folder_the_account_cannot_enter_moves_the_data_and_says_so() {
    let closed = tempfile::tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let dir = closed.path().join("a long and odd folder, with a name that no socket could ever have".repeat(2));
    let postgres = PrivatePostgres::start(&search(), Options::new(&dir)).await.unwrap();
    connect(&postgres.url()).await.ping().await.unwrap();
    let places = postgres.places().clone();
    postgres.stop().await.unwrap();
    if places.account.is_some() {
        assert!(places.base.starts_with("/var/tmp"));
        assert!(places.notes.iter().any(|note| note.contains("cannot enter")), "{:?}", places.notes);
        fs::remove_dir_all(&places.base).unwrap();
    } else {
        assert!(places.base.starts_with(fs::canonicalize(closed.path()).unwrap()));
        assert!(places.socket_dir.starts_with(SHORT_FOLDER));
        assert!(places.notes.iter().any(|note| note.contains("too long")), "{:?}", places.notes);
        fs::remove_dir_all(&places.socket_dir).unwrap();
    }
}

#[tokio::test]
async fn a_socket_whose_path_would_be_too_long_is_put_elsewhere() {
    let root = open_folder();
    let dir = root.path().join("x".repeat(100));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).unwrap();
    let postgres = PrivatePostgres::start(&search(), Options::new(&dir)).await.unwrap();
    connect(&postgres.url()).await.ping().await.unwrap();
    let socket_dir = postgres.places().socket_dir.clone();
    assert_eq!(socket_dir.parent(), Some(Path::new(SHORT_FOLDER)));
    assert_eq!(fs::metadata(&socket_dir).unwrap().permissions().mode() & 0o777, 0o700);
    postgres.stop().await.unwrap();
    fs::remove_dir_all(socket_dir).unwrap();
}

#[tokio::test]
async fn another_major_version_and_a_failing_start_are_said_plainly() {
    let dir = open_folder();
    let options =
        Options { settings: vec![("max_connections".to_owned(), "many".to_owned())], ..Options::new(dir.path()) };
    let error = PrivatePostgres::start(&search(), options).await.unwrap_err();
    assert!(matches!(error, Error::DiedAtStart { .. }), "{error:?}");
    assert!(error.to_string().contains("max_connections"), "{error}");

    // The failed start made the cluster; make it look like one of a version that nobody has.
    let version = fs::canonicalize(dir.path()).unwrap().join("pg/data/PG_VERSION");
    fs::write(&version, "99\n").unwrap();
    let found = search().find(None).await.unwrap();
    let error = PrivatePostgres::start(&search(), Options::new(dir.path())).await.unwrap_err();
    assert!(
        matches!(error, Error::MajorMismatch { data_major: 99, found_major, .. } if found_major == found.major),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains("Postgres 99") && text.contains(&found.major.to_string()), "{text}");
}
