//! A bad configuration ends the program before anything starts, with one line that helps.

use harness::process::command;
use std::process::Output;

fn run(name: &str, variable: &str, value: &str) -> Output {
    command(name, &[(variable.into(), value.into())]).arg("serve").output().unwrap()
}

#[test]
fn bad_keys_urls_and_addresses_are_refused_with_exit_code_2() {
    for (name, variable, value, hint) in [
        ("requestor", "REQUESTOR_BROKER__URI", "amqp://localhost", "uri"),
        ("requestor", "REQUESTOR_BROKER__URL", "http://localhost", "broker.url"),
        ("requestor", "REQUESTOR_BROKER__URL", "localhost:5672", "broker.url"),
        ("requestor", "REQUESTOR_HTTP__LISTEN", "localhost", "http.listen"),
        ("requestor", "REQUESTOR_HTTP__LISTEN", "192.0.2.1:80", "allow_anonymous"),
        ("requestor", "REQUESTOR_HTTP__WAIT_MAX", "soon", "wait_max"),
        ("requestor", "REQUESTOR_CALLERS__ADA__KEY_HASHES", "swordfish", "callers.ada.key_hashes"),
        ("requestor", "REQUESTOR_QUOTAS__RATE_WINDOW", "10ms", "quotas.rate_window"),
        ("requestor", "REQUESTOR_STORE__URL", "mysql://localhost", "sqlite://"),
        ("requestor", "REQUESTOR_GROUP", "my group", "group"),
        ("requestor", "REQUESTOR_LOG__FILTER", "==", "log.filter"),
        ("provider", "PROVIDER_KINDS", "echo,nope", "nope"),
        ("provider", "PROVIDER_HTTP__LISTEN", "192.0.2.1:80", "http.listen"),
        ("provider", "PROVIDER_CONCURENCY", "3", "concurency"),
        ("provider", "PROVIDER_LEASE", "37s", "progress.heartbeat"),
        ("provider", "PROVIDER_ACK_HOLD", "29m", "ack_timeout"),
        ("provider", "PROVIDER_LEDGER__RETENTION", "24h", "ledger.retention"),
        ("provider", "PROVIDER_BROKER__URL_FILE", "/does/not/exist", "PROVIDER_BROKER__URL_FILE"),
    ] {
        let output = run(name, variable, value);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{variable}={value}: {error}");
        assert!(error.contains(hint), "{variable}={value}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{variable}={value}: {error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_bad_file_is_named_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requestor.toml");
    for (text, hint) in [("[http\nlisten = 1", "requestor.toml"), ("[http]\nlisen = \"x\"", "lisen")] {
        std::fs::write(&file, text).unwrap();
        let variables = [("REQUESTOR_GROUP".to_owned(), "innocent".to_owned())];
        let output = command("requestor", &variables).args(["serve", "--config"]).arg(&file).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(hint) && error.contains("requestor.toml") && !error.contains("REQUESTOR"), "{error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
}

#[test]
fn the_effective_configuration_hides_secrets_and_reads_them_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("url");
    std::fs::write(&secret, "amqp://me:swordfish@broker.example\n").unwrap();
    for (name, variable) in [("requestor", "REQUESTOR_BROKER__URL_FILE"), ("provider", "PROVIDER_BROKER__URL_FILE")] {
        let variables = [(variable.to_owned(), secret.to_str().unwrap().to_owned())];
        let output = command(name, &variables).arg("config").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("me:***@broker.example") && !text.contains("swordfish"), "{text}");
    }
}

#[test]
fn a_file_overrides_the_defaults_and_the_environment_overrides_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("provider.toml");
    std::fs::write(&file, "group = \"file\"\nconcurrency = 7\n").unwrap();
    let variables = [("PROVIDER_GROUP".to_owned(), "environment".to_owned())];
    let output = command("provider", &variables).args(["config", "--config", file.to_str().unwrap()]).output().unwrap();
    let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((config["group"].as_str(), config["concurrency"].as_u64()), (Some("environment"), Some(7)));
}
