//! What a redirect asks for, and what goes along: to another host neither the node's headers nor a body, which may hold
//! secrets, and never from `https` to `http`.

use reqwest::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LOCATION,
};
use reqwest::{Method, Request, Response, StatusCode, Url};

use super::shown;
use crate::engine::NodeError;
use crate::engine::kinds::network::NetworkRefusal;

/// What another host may know of a request.
const FOR_ANYBODY: [HeaderName; 2] = [ACCEPT, ACCEPT_LANGUAGE];

/// What is said of a body.
const OF_A_BODY: [HeaderName; 3] = [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING];

/// Returns the request that the answer to another one points to; nothing where it is no redirect.
pub(super) fn next(mut request: Request, response: &Response) -> Result<Option<Request>, NodeError> {
    let status = response.status();
    let Some(location) = response.headers().get(LOCATION).filter(|_| is_redirect(status)) else {
        return Ok(None);
    };
    let from = request.url().clone();
    let refused = |why: &str| NodeError::permanent(format!("no answer from {}: {why}", shown(&from)));
    let to = std::str::from_utf8(location.as_bytes()).ok().and_then(|location| from.join(location).ok());
    let to = to.ok_or_else(|| refused("its redirect points to no address"))?;
    match (from.scheme(), to.scheme()) {
        ("https", "http") => return Err(refused("a redirect from https to http is not followed")),
        (_, "http" | "https") => {}
        _ => return Err(refused("its redirect points to neither http nor https")),
    }
    if forgets_body(status, request.method()) {
        *request.method_mut() = Method::GET;
        *request.body_mut() = None;
        OF_A_BODY.iter().for_each(|name| drop(request.headers_mut().remove(name)));
    }
    if !is_same_server(&from, &to) {
        if request.body().is_some() {
            let host = |url: &Url| url.host_str().unwrap_or_default().to_owned();
            return Err(NetworkRefusal::BodyToAnotherHost { from: host(&from), to: host(&to) }.into());
        }
        let given = std::mem::take(request.headers_mut());
        let known = given.into_iter().filter_map(|(name, value)| Some((name?, value)));
        request.headers_mut().extend(known.filter(|(name, _)| FOR_ANYBODY.contains(name)));
    }
    *request.url_mut() = to;
    Ok(Some(request))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Tells whether a request goes on as a `GET`, as every client does it.
fn forgets_body(status: StatusCode, method: &Method) -> bool {
    match status.as_u16() {
        301 | 302 => *method == Method::POST,
        303 => *method != Method::HEAD,
        _ => false,
    }
}

/// Tells whether two addresses are of one server: the same, or the same behind encryption.
fn is_same_server(from: &Url, to: &Url) -> bool {
    let is_encrypted_now = from.host() == to.host()
        && (from.scheme(), to.scheme()) == ("http", "https")
        && from.port().is_none()
        && to.port().is_none();
    from.origin() == to.origin() || is_encrypted_now
}
