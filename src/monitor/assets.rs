//! The files of the page, built into the program.

/// The path of each file, its type, and its content. To add one, add it to `page/` and here.
pub const FILES: &[(&str, &str, &[u8])] = &[
    ("/", "text/html; charset=utf-8", include_bytes!("page/index.html")),
    ("/app.css", "text/css; charset=utf-8", include_bytes!("page/app.css")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("page/app.js")),
    ("/stream.js", "text/javascript; charset=utf-8", include_bytes!("page/stream.js")),
    ("/model.js", "text/javascript; charset=utf-8", include_bytes!("page/model.js")),
    ("/format.js", "text/javascript; charset=utf-8", include_bytes!("page/format.js")),
    ("/dom.js", "text/javascript; charset=utf-8", include_bytes!("page/dom.js")),
    ("/head.js", "text/javascript; charset=utf-8", include_bytes!("page/head.js")),
    ("/charts.js", "text/javascript; charset=utf-8", include_bytes!("page/charts.js")),
    ("/blocks.js", "text/javascript; charset=utf-8", include_bytes!("page/blocks.js")),
    ("/sections.js", "text/javascript; charset=utf-8", include_bytes!("page/sections.js")),
    ("/hosts.js", "text/javascript; charset=utf-8", include_bytes!("page/hosts.js")),
    ("/tables.js", "text/javascript; charset=utf-8", include_bytes!("page/tables.js")),
    ("/uplot.js", "text/javascript; charset=utf-8", include_bytes!("page/uplot.js")),
];
