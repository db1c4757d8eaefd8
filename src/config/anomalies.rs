//! Which anomalies the job looks for, and with which thresholds.

use sessionizer_core::anomaly::{Kind, Thresholds};

use crate::cli::RunArgs;
use crate::config::Problems;

/// The anomalies that the job looks for.
#[derive(Clone, PartialEq, Debug)]
pub struct Anomalies {
    /// Empty: nothing.
    pub kinds: Vec<Kind>,
    pub thresholds: Thresholds,
}

impl Anomalies {
    /// Whether visitors and networks are judged, by the day.
    pub fn judges_visitors(&self) -> bool {
        self.kinds.iter().any(|kind| matches!(kind, Kind::Repeat | Kind::Network))
    }

    /// In one line, for comparing the processes of a cluster.
    pub fn shown(&self) -> String {
        let kinds: Vec<&str> = self.kinds.iter().map(|kind| kind.name()).collect();
        match kinds.is_empty() {
            true => "none".to_owned(),
            false => format!("{} by {:?}", kinds.join(","), self.thresholds),
        }
    }
}

/// Reads `--anomalies` and `--anomaly-threshold`.
pub fn read(problems: &mut Problems<'_>, args: &RunArgs) -> Option<Anomalies> {
    let kinds = problems.take("--anomalies", read_kinds(&args.anomalies));
    let is_off = kinds.as_ref().is_some_and(Vec::is_empty);
    let thresholds = match &args.anomaly_threshold[..] {
        [_, ..] if is_off => Err("has nothing to apply to, because --anomalies is none".to_owned()),
        settings => read_thresholds(settings),
    };
    let thresholds = problems.take("--anomaly-threshold", thresholds);
    Some(Anomalies { kinds: kinds?, thresholds: thresholds? })
}

fn read_kinds(names: &[String]) -> Result<Vec<Kind>, String> {
    let names: Vec<&str> = names.iter().map(|name| name.trim()).collect();
    if names == ["none"] {
        return Ok(Vec::new());
    }
    let mut kinds = Vec::new();
    for name in names {
        let kind = Kind::named(name).ok_or_else(|| {
            let known = Kind::ALL.map(Kind::name).join(", ");
            format!("has {name:?}: it can be several of {known}, or none")
        })?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

fn read_thresholds(settings: &[String]) -> Result<Thresholds, String> {
    let mut thresholds = Thresholds::default();
    let mut named = Vec::new();
    for setting in settings {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| format!("is {setting:?}: write NAME=VALUE, like burst.min=100"))?;
        let value =
            value.trim().parse().map_err(|_| format!("{name}: {value:?} is not a number"))?;
        thresholds.set(name.trim(), value)?;
        if named.contains(&name.trim()) {
            return Err(format!("sets {} twice: keep one of them", name.trim()));
        }
        named.push(name.trim());
    }
    Ok(thresholds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn kinds_are_named_or_none() {
        let kinds = |names: &[&str]| read_kinds(&owned(names));
        assert_eq!(kinds(&["none"]), Ok(vec![]));
        assert_eq!(kinds(&["fall", " burst", "fall"]), Ok(vec![Kind::Fall, Kind::Burst]));
        assert_eq!(kinds(&Kind::ALL.map(Kind::name)), Ok(Kind::ALL.to_vec()));
        for name in ["brust", "Clock", ""] {
            let why = kinds(&["burst", name]).expect_err("not one of them");
            let want = format!("has {name:?}: it can be several of burst, marathon, repeat");
            assert!(why.starts_with(&want), "{why}");
        }
        assert!(kinds(&["burst", "none"]).is_err());
    }

    #[test]
    fn thresholds_are_named_with_a_number() {
        let thresholds = read_thresholds(&owned(&["burst.min=100", "surge.z = 8"])).expect("valid");
        assert_eq!((thresholds.burst.min, thresholds.surge_z), (100, 8.0));
        let twice = read_thresholds(&owned(&["burst.min=100", "burst.min =90"]));
        assert_eq!(twice, Err("sets burst.min twice: keep one of them".to_owned()));
        for (setting, want) in [
            ("burst.min", "is \"burst.min\": write NAME=VALUE"),
            ("burst.min=many", "burst.min: \"many\" is not a number"),
            ("burst.mn=1", "\"burst.mn\" is none of learn, burst.min"),
        ] {
            let why = read_thresholds(&owned(&[setting])).expect_err("a mistake");
            assert!(why.starts_with(want), "{why}");
        }
    }
}
