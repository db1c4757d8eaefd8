//! The two formats of metrics.

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// A format of metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The text of Prometheus, 0.0.4: what a person sees, too.
    Text,
    OpenMetrics,
}

impl Format {
    /// The format that is asked for.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        match accepted.any(|accepts| accepts.contains("application/openmetrics-text")) {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Turns OpenMetrics into the older format: there, a counter has the name of its samples, and an
/// info is a gauge.
pub fn plain(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let types = open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let suffixes = [("counter", "_total"), ("info", "_info")];
    let renamed: Vec<(&str, &str)> = types
        .filter_map(|(name, kind)| {
            let (_, suffix) = suffixes.into_iter().find(|(known, _)| *known == kind)?;
            Some((name, suffix))
        })
        .collect();
    for line in open.lines() {
        let described = ["# HELP ", "# TYPE "].iter().find_map(|what| {
            let (name, rest) = line.strip_prefix(what)?.split_once(' ')?;
            let (_, suffix) = renamed.iter().find(|(known, _)| *known == name)?;
            let rest = if (*what, rest) == ("# TYPE ", "info") { "gauge" } else { rest };
            Some(format!("{what}{name}{suffix} {rest}"))
        });
        match described {
            Some(line) => text.push_str(&line),
            None if line == "# EOF" || line.starts_with("# UNIT ") => continue,
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let mut headers = HeaderMap::new();
        assert_eq!(Format::accepted(&headers), Format::Text);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3";
        headers.insert(ACCEPT, HeaderValue::from_static(prometheus));
        assert_eq!(Format::accepted(&headers), Format::OpenMetrics);
    }

    #[test]
    fn in_the_older_format_a_counter_is_called_as_its_samples_are() {
        let open = "# HELP a_b Help.\n# TYPE a_b counter\na_b_total 1\n# HELP c C.\n# TYPE c gauge\n\
                    # UNIT c seconds\nc 2\n# HELP d D.\n# TYPE d info\nd_info{x=\"y\"} 1\n# EOF\n";
        let want = "# HELP a_b_total Help.\n# TYPE a_b_total counter\na_b_total 1\n# HELP c C.\n\
                    # TYPE c gauge\nc 2\n# HELP d_info D.\n# TYPE d_info gauge\nd_info{x=\"y\"} 1\n";
        assert_eq!(plain(open), want);
    }
}
