//! Decides what a request is answered with. Only GET and HEAD are served, no other site may read
//! the answers, and the page may execute nothing but its own files.

use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Response, StatusCode, Uri, Version};

use crate::monitor::assets::FILES;
use crate::monitor::body::Answer;
use crate::monitor::exposition::Format;
use crate::monitor::host;

/// What the page may load: its own scripts and styles, and answers from this port. Nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action \
                      'none'";

const TEXT: &str = "text/plain; charset=utf-8";

/// A response to send.
pub type Reply = Response<Answer>;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    File(usize),
    Status,
    Events,
    Metrics(Format),
    Live,
    Ready,
}

/// What a request asks for, or why it is refused.
pub fn wanted(
    (method, uri, version): (&Method, &Uri, Version),
    headers: &HeaderMap,
    names: &[String],
) -> Result<Wanted, Box<Reply>> {
    let refuse = |status: StatusCode, why: &str| Err(Box::new(text(status, why)));
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n");
        reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Err(Box::new(reply));
    }
    // A request with an absolute URL names the host, too.
    let mut hosts = headers.get_all(header::HOST).iter();
    let asked = match (uri.authority(), hosts.next(), hosts.next()) {
        (_, Some(_), Some(_)) => None,
        (Some(authority), ..) => Some(authority.as_str()),
        (None, Some(host), None) => host.to_str().ok(),
        // Only HTTP/1.0 clients may omit it; no browser does.
        (None, None, _) if version == Version::HTTP_10 => Some("localhost"),
        (None, None, _) => None,
    };
    if !asked.is_some_and(|asked| host::is_ours(asked, names)) {
        let why = "this name is not known here: use the address, or start the job with \
                   --http-host NAME\n";
        return refuse(StatusCode::MISDIRECTED_REQUEST, why);
    }
    Ok(match uri.path() {
        "/status" => Wanted::Status,
        "/events" => Wanted::Events,
        "/metrics" => Wanted::Metrics(Format::accepted(headers)),
        "/livez" => Wanted::Live,
        "/readyz" => Wanted::Ready,
        path => match FILES.iter().position(|(known, ..)| *known == path) {
            Some(file) => Wanted::File(file),
            None => {
                let why = "there are /, /status, /metrics, /livez and /readyz\n";
                return refuse(StatusCode::NOT_FOUND, why);
            }
        },
    })
}

/// A file of the page. Its ETag changes with its content.
pub fn file(at: usize, headers: &HeaderMap) -> Reply {
    let (_, kind, content) = FILES[at];
    let tag = format!("\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(content));
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    let known = known.filter_map(|value| value.to_str().ok());
    let (status, bytes) = match known.flat_map(|value| value.split(',')).any(|it| it.trim() == tag)
    {
        true => (StatusCode::NOT_MODIFIED, Bytes::new()),
        false => (StatusCode::OK, Bytes::from_static(content)),
    };
    let mut reply = whole(status, kind, bytes);
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits"));
    reply
}

/// A plain text.
pub fn text(status: StatusCode, text: &str) -> Reply {
    whole(status, TEXT, Bytes::copy_from_slice(text.as_bytes()))
}

/// A complete answer.
pub fn whole(status: StatusCode, kind: &'static str, bytes: Bytes) -> Reply {
    reply(status, kind, Answer::Whole(bytes))
}

/// An answer with the headers that all answers have.
pub fn reply(status: StatusCode, kind: &'static str, body: Answer) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, uri: &str, host: &[&str]) -> Result<Wanted, StatusCode> {
        let mut headers = HeaderMap::new();
        for host in host {
            headers.append(header::HOST, HeaderValue::from_str(host).expect("a header"));
        }
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let uri: Uri = uri.parse().expect("a path");
        let names = ["jobs.example".to_owned()];
        let asked = wanted((&method, &uri, Version::HTTP_11), &headers, &names);
        asked.map_err(|reply| reply.status())
    }

    #[test]
    fn paths_are_answered_and_nothing_else_is() {
        assert_eq!(ask("GET", "/livez", &["127.0.0.1:9464"]), Ok(Wanted::Live));
        assert_eq!(ask("HEAD", "/readyz?verbose", &["jobs.example"]), Ok(Wanted::Ready));
        assert_eq!(ask("GET", "/", &["localhost"]), Ok(Wanted::File(0)));
        assert_eq!(ask("GET", "http://localhost/status", &["localhost"]), Ok(Wanted::Status));
        for (method, uri, hosts, status) in [
            ("POST", "/status", &["localhost"][..], 405),
            ("DELETE", "/", &["localhost"], 405),
            ("GET", "/status", &["evil.example"], 421),
            ("GET", "/status", &[], 421),
            ("GET", "/status", &["localhost", "localhost"], 421),
            ("GET", "http://evil.example/status", &["localhost"], 421),
            ("GET", "/../etc/passwd", &["localhost"], 404),
            ("GET", "/status/", &["localhost"], 404),
        ] {
            let got = ask(method, uri, hosts).map_err(|status| status.as_u16());
            assert_eq!(got, Err(status), "{method} {uri} {hosts:?}");
        }
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let first = file(0, &HeaderMap::new());
        let tag = first.headers()[header::ETAG].clone();
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, tag);
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(file(0, &headers).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(first.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
}
