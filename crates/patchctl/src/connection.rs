//! From the command line, the environment and the user's directory to a client.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use patch_client::{Client, ClientConfig};

use crate::{args::ConnectionArgs, exit::Misconfigured};

/// A client as the arguments ask for it.
pub(crate) fn client(args: ConnectionArgs) -> anyhow::Result<Client> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let xdg = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    Ok(Client::new(config(args, xdg.as_deref(), home.as_deref())?)?)
}

fn config(
    args: ConnectionArgs,
    xdg: Option<&Path>,
    home: Option<&Path>,
) -> Result<ClientConfig, Misconfigured> {
    let Some(host) = args.host else {
        return Err(Misconfigured("no agent is named; give --host HOST[:PORT] or set PATCHCTL_HOST".into()));
    };
    let directory = args.config.or_else(|| {
        // The base directory specification has relative paths ignored.
        let base = xdg.filter(|dir| dir.is_absolute()).map(Path::to_owned);
        base.or_else(|| home.map(|home| home.join(".config"))).map(|base| base.join("patchctl"))
    });
    let file = |given: Option<PathBuf>, name: &str, option: &str| match (given, &directory) {
        (Some(path), _) => Ok(path),
        (None, Some(directory)) => Ok(directory.join(name)),
        (None, None) => Err(Misconfigured(format!("HOME is not set; give --{option} or --config"))),
    };
    let mut config = ClientConfig::new(
        host,
        file(args.ca, "ca.pem", "ca")?,
        file(args.cert, "client.pem", "cert")?,
        file(args.key, "client.key.pem", "key")?,
    );
    config.server_name = args.server_name;
    config.timeout = Duration::from_secs(args.timeout.into());
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ConnectionArgs {
        ConnectionArgs {
            host: Some("web1".parse().unwrap()),
            config: None,
            ca: None,
            cert: None,
            key: None,
            server_name: None,
            timeout: 5,
        }
    }

    #[test]
    fn files_come_from_the_nearest_place_that_names_them() {
        let home = Some(Path::new("/h"));
        let ca = |args, xdg: Option<&str>| config(args, xdg.map(Path::new), home).unwrap().ca;
        assert_eq!(ca(args(), None), Path::new("/h/.config/patchctl/ca.pem"));
        assert_eq!(ca(args(), Some("/x")), Path::new("/x/patchctl/ca.pem"));
        assert_eq!(ca(args(), Some("x")), Path::new("/h/.config/patchctl/ca.pem"));
        assert_eq!(ca(ConnectionArgs { config: Some("/c".into()), ..args() }, None), Path::new("/c/ca.pem"));
        let both = ConnectionArgs { config: Some("/c".into()), ca: Some("ca2".into()), ..args() };
        assert_eq!(ca(both, None), Path::new("ca2"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = config(ConnectionArgs { host: None, ..args() }, None, None).unwrap_err();
        assert!(error.0.contains("PATCHCTL_HOST"));
        assert!(config(args(), None, None).unwrap_err().0.contains("--ca"));
    }
}
