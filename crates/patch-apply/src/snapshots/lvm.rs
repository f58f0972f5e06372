//! LVM: thin snapshots of thin volumes; command lines of its tools, and what they print.
//!
//! A volume that is not thin is left alone: its snapshots need room that is set aside, and are lost when that is used up.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::apt::argv::Argv;

const LVS: &str = "/usr/sbin/lvs";
const LVCREATE: &str = "/usr/sbin/lvcreate";
const LVREMOVE: &str = "/usr/sbin/lvremove";

/// What the names of ours begin with; the job's id follows.
const PREFIX: &str = "linux-patch-";

/// What ours are tagged with.
pub const TAG: &str = "linux_patch";

/// How full a pool may be for another snapshot, in percent: a pool that is full stops its volumes.
pub const FULLEST: f64 = 90.0;

/// Whether the tools are there.
#[must_use]
pub fn is_there() -> bool {
    [LVS, LVCREATE, LVREMOVE].iter().all(|program| Path::new(program).is_file())
}

/// What ours are called.
#[must_use]
pub fn name(job: &str, number: usize) -> String {
    format!("{PREFIX}{job}-{number}")
}

/// Asks about volumes: of a device, of a volume (`VG/LV`), or all of them.
#[must_use]
pub fn list(of: Option<&str>) -> Argv {
    let mut args: Vec<String> = ["--reportformat", "json", "--options", "vg_name,lv_name,pool_lv,lv_tags"]
        .map(str::to_owned)
        .to_vec();
    args.extend(of.map(str::to_owned));
    Argv::new(LVS, args)
}

/// Asks how full a pool is.
#[must_use]
pub fn fullness(pool: &str) -> Argv {
    let args = ["--reportformat", "json", "--options", "data_percent,metadata_percent", pool];
    Argv::new(LVS, args.map(str::to_owned).to_vec())
}

/// Makes a thin snapshot, which cannot be written. `of` is `VG/LV`, as LVM names it.
#[must_use]
pub fn create(of: &str, name: &str) -> Argv {
    let args = ["--snapshot", "--permission", "r", "--addtag", TAG, "--name", name, of];
    Argv::new(LVCREATE, args.map(str::to_owned).to_vec())
}

/// Removes one, `VG/LV`.
#[must_use]
pub fn remove(volume: &str) -> Argv {
    Argv::new(LVREMOVE, ["--yes", volume].map(str::to_owned).to_vec())
}

/// What a person types to go back to one: in force when the volume is activated anew, at the next boot.
#[must_use]
pub fn merge(volume: &str) -> String {
    format!("lvconvert --merge {volume}")
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Its group.
    pub vg_name: String,
    /// Its name.
    pub lv_name: String,
    /// The pool of a thin one; empty for others.
    pub pool_lv: String,
    /// Its tags, with commas between.
    #[serde(default)]
    pub lv_tags: String,
}

impl Volume {
    /// `VG/LV`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.vg_name, self.lv_name)
    }

    /// The pool that it lies in, `VG/LV`, if it is thin.
    #[must_use]
    pub fn pool(&self) -> Option<String> {
        (!self.pool_lv.is_empty()).then(|| format!("{}/{}", self.vg_name, self.pool_lv))
    }

    /// Whether it is one of ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.lv_name.starts_with(PREFIX) && self.lv_tags.split(',').any(|tag| tag == TAG)
    }
}

#[derive(Deserialize)]
struct Reports<T> {
    report: Vec<BTreeMap<String, Vec<T>>>,
}

fn entries<T: for<'de> Deserialize<'de>>(text: &str) -> Option<Vec<T>> {
    let reports: Reports<T> = serde_json::from_str(text).ok()?;
    Some(reports.report.into_iter().filter_map(|mut report| report.remove("lv")).flatten().collect())
}

/// Reads a list of volumes.
#[must_use]
pub fn parse_list(text: &str) -> Option<Vec<Volume>> {
    entries(text)
}

/// Reads how full a pool is, in percent: its data or what describes them, whichever is fuller.
#[must_use]
pub fn parse_fullness(text: &str) -> Option<f64> {
    #[derive(Deserialize)]
    struct Fullness {
        data_percent: String,
        metadata_percent: String,
    }
    let pool = entries::<Fullness>(text)?.into_iter().next()?;
    let percent = |text: &str| text.trim().parse::<f64>().ok().filter(|percent| percent.is_finite());
    Some(percent(&pool.data_percent)?.max(percent(&pool.metadata_percent)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As `lvs(8)` of LVM 2.03.16 prints it.
    const LIST: &str = r#"  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg0", "lv_name":"root", "pool_lv":"pool0", "lv_tags":""},
                  {"vg_name":"vg0", "lv_name":"linux-patch-x-0", "pool_lv":"pool0", "lv_tags":"a,linux_patch"},
                  {"vg_name":"vg0", "lv_name":"swap", "pool_lv":"", "lv_tags":""}
              ]
          }
      ]
  }
"#;

    #[test]
    fn what_the_tools_print_is_read() {
        let volumes = parse_list(LIST).unwrap();
        assert_eq!(
            (volumes[0].path().as_str(), volumes[0].pool().as_deref()),
            ("vg0/root", Some("vg0/pool0"))
        );
        assert!(volumes[1].is_ours() && !volumes[0].is_ours() && volumes[2].pool().is_none());
        let said = r#"{"report": [{"lv": [{"data_percent":"12.34", "metadata_percent":"20.00"}]}]}"#;
        assert_eq!(parse_fullness(said), Some(20.0));
        assert_eq!(parse_fullness(&said.replace("20.00", "")), None);
        assert_eq!(parse_fullness(r#"{"report": []}"#), None);
        assert_eq!(parse_list("  No volume groups found"), None);
    }

    #[test]
    fn command_lines_are_as_the_manual_has_them() {
        assert_eq!(
            create("vg0/root", &name("x", 0)).to_string(),
            "/usr/sbin/lvcreate --snapshot --permission r --addtag linux_patch --name linux-patch-x-0 vg0/root"
        );
        assert_eq!(remove("vg0/linux-patch-x-0").to_string(), "/usr/sbin/lvremove --yes vg0/linux-patch-x-0");
        assert!(
            list(Some("/dev/mapper/vg0-root"))
                .to_string()
                .ends_with("vg_name,lv_name,pool_lv,lv_tags /dev/mapper/vg0-root")
        );
        assert!(fullness("vg0/pool0").to_string().ends_with("data_percent,metadata_percent vg0/pool0"));
        assert_eq!(merge("vg0/x"), "lvconvert --merge vg0/x");
    }

    proptest! {
        #[test]
        fn whatever_they_print_is_no_reason_to_panic(text in "\\PC*") {
            let _ = (parse_list(&text), parse_fullness(&text));
        }
    }
}
