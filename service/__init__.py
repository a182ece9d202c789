"""The REST service: ONNX Runtime behind FastAPI, without PyTorch and without knowledge of training.

Read it in the order that a request takes:

    main        process: server, signals, drain                 (`run(settings)`)
    settings    every setting in one place                      (environment: names that are nearly settings)
    app         `create_app(settings)`: parts, lifespan, routes
    door        takes connections, or refuses what comes with them
    connections how many there may be                           (protocol: HTTP up to the end of the head)
    middleware  request id and metrics, body limits, admin token   (before any handler, in this order)
    front       HEAD, and CORS for named pages
    api/        thin HTTP layers: predict (outside of FastAPI), v2, health, admin
    forms, oip  body -> encoded images, or a tensor
    core        admit -> decode -> batch -> answer              (knows no HTTP)
    decoding    who decodes when
    images      encoded image -> pixels, under limits
    admission   places in the queue                         (overload: how many of them in a flood)
    batcher     pixels of many requests -> one batch
    engine      batch -> outputs of the protected graph (binding: its buffers on a GPU)
    registry    which version is served; swaps it
    decisions   why an image was answered as it was, a line each
    quarantine  flagged images kept for review                  (fair: whose turn; kept: on disk; pictures: for people)
    access      who may administer                              (audit: who did)
    console/    pages for people who administer and review      (headers: what browsers are told)
    watch       flags that concentrate on one label, scores that drift
    jobs/       retraining as a subprocess
    probe       does a published graph still answer?            (for `detrigger verify`)
    problem, metrics, logs, traces: errors, numbers, lines and spans that all of them share
    memory      what a swapped model leaves behind
"""
