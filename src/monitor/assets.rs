//! The files of the page. They are built in, so there is nothing to install and nothing to find.

/// The path of each file, its type, and its content. To add one, add it to `page/` and here.
pub const FILES: &[(&str, &str, &[u8])] = &[
    ("/", "text/html; charset=utf-8", include_bytes!("page/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("page/app.js")),
    ("/app.css", "text/css; charset=utf-8", include_bytes!("page/app.css")),
];
