"""The seed execution as the API must list it."""

SEED_EXECUTION = "e19d3faf-9f04-9685-e5c0-fbe8d40b96cd"


def _event(name: str, reason: str, element: str, message: str) -> str:
    return (
        f'{{"metadata":{{"name":"gcs-exec-3-08-20-144951.{name}",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        '"involvedObject":{"name":"gcs-exec-3-08-20-144951",'
        '"namespace":"c51567523b744d098a8a81ede51894ac"},'
        f'"reason":"{reason}","message":"{message}",'
        '"firstTimestamp":"2018-08-20T06:41:44Z","lastTimestamp":"2018-08-20T06:41:44Z",'
        f'"count":1,"type":"Normal","elemType":"KubeDAG.init","elemId":"{element}",'
        '"actionName":"create"}'
    )


SEED_BODY = "[{},{},{}]".format(
    _event(
        "154c848add38e9f9",
        "执行成功##SuccessfulFinish",
        "job-a-init",
        "元素(job-a-init)执行create成功. "
        "## Element(job-a-init) execute Action: create successfully",
    ),
    *(
        _event(
            name,
            "启动##ActionStart",
            element,
            f"元素({element})开始执行(create)流程. ## Element({element}) start to Action(create).",
        )
        for name, element in (
            ("154c848ade084c88", "job-c-init"),
            ("154c848ade7ed58e", "job-d-init"),
        )
    ),
)
