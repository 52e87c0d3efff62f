//! Data that comes through a pipe, and a pipe that brings none.

use std::fs::File;

use super::{Cli, alone, run_with_stdin};

#[tokio::test]
async fn an_empty_pipe_is_no_event_and_no_data_is_said() {
    for args in [&["publish", "A"][..], &["publish", "A", "--data", "-"]] {
        alone(args).await.fails(2, &["standard input is empty", "--data '{}'", "--no-data"]);
    }
    alone(&["publish", "A", "--no-data", "--data", "{}"]).await.fails(2, &["--no-data", "--data"]);

    let cli = Cli::new().await;
    cli.tenant.declare("CUSTOM_CLI").await;
    let data_of = async |published: serde_json::Value| {
        let id = published["eventId"].as_str().expect("an id").to_owned();
        cli.run(&["events", "get", &id, "--json"]).await.document()["event"]["textData"].clone()
    };
    let none = cli.run(&["publish", "CUSTOM_CLI", "--no-data", "--json"]).await.document();
    assert_eq!(data_of(none).await, serde_json::Value::Null);
    let file = cli.dir.path().join("piped.json");
    std::fs::write(&file, r#"{"n": 1}"#).expect("a file in the temporary folder");
    for args in [&["publish", "CUSTOM_CLI", "--json"][..], &["publish", "CUSTOM_CLI", "--json", "--data", "-"]] {
        let mut command = cli.command(args);
        command.stdin(File::open(&file).expect("it was written"));
        let piped = run_with_stdin(command).await.document();
        assert_eq!(data_of(piped).await, r#"{"n": 1}"#, "{args:?}");
    }
}
