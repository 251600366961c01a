"""What makes one version of a model: everything that ends up in its pods. Its hash is the version's identity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tidegate.api.base import Duration, Name, Quantity, Type, keyed, rules

Backend = Literal["KServe", "Knative"]


class KeyRef(Type):
    """One key of a Secret or ConfigMap of the same namespace."""

    name: Annotated[Name, Field(description="Name of the Secret or ConfigMap.")]
    key: Annotated[str, Field(description="Key whose value is taken.", min_length=1, max_length=253)]


class ValueFrom(Type):
    """Where the value of an environment variable comes from. Exactly one source."""

    secret_key_ref: Annotated[KeyRef | None, Field(description="A key of a Secret.")] = None
    config_map_key_ref: Annotated[KeyRef | None, Field(description="A key of a ConfigMap.")] = None

    model_config = {
        "json_schema_extra": rules(
            (
                "has(self.secretKeyRef) != has(self.configMapKeyRef)",
                "give exactly one of secretKeyRef and configMapKeyRef",
            )
        )
    }


class EnvVar(Type):
    """An environment variable of a container."""

    name: Annotated[str, Field(description="Name of the variable.", min_length=1, max_length=253)]
    value: Annotated[str | None, Field(description="Its value, as it is.", max_length=4096)] = None
    value_from: Annotated[ValueFrom | None, Field(description="Where its value comes from, instead of value.")] = None

    model_config = {
        "json_schema_extra": rules(("!(has(self.value) && has(self.valueFrom))", "give value or valueFrom, not both"))
    }


Env = Annotated[
    list[EnvVar],
    Field(max_length=64, json_schema_extra=keyed("name")),
]
Words = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=64)]


class Resources(Type):
    """Compute resources of a container."""

    requests: Annotated[
        dict[str, Quantity], Field(description="What the scheduler sets aside, by resource name.", max_length=16)
    ] = {}
    limits: Annotated[
        dict[str, Quantity], Field(description="What the container may use at most, by resource name.", max_length=16)
    ] = {}


class Container(Type):
    """An image of one's own that serves HTTP."""

    image: Annotated[str, Field(description="Image, best pinned by digest.", min_length=1, max_length=1024)]
    command: Annotated[Words, Field(description="Replaces the image's entrypoint.")] = []
    port: Annotated[int, Field(description="Port that it serves HTTP on; it is also in $PORT.", ge=1, le=65535)] = 8080


class Transformer(Type):
    """A container that stands before the model: it takes the request, calls the model, and answers."""

    image: Annotated[str, Field(description="Image, best pinned by digest.", min_length=1, max_length=1024)]
    command: Annotated[Words, Field(description="Replaces the image's entrypoint.")] = []
    args: Annotated[Words, Field(description="Arguments. KServe adds the model's name and the predictor's host.")] = []
    env: Annotated[Env, Field(description="Environment variables.")] = []
    resources: Annotated[Resources, Field(description="Compute resources of the transformer.")] = Resources()


class Storage(Type):
    """How the model's files are fetched."""

    secret: Annotated[
        Name | None,
        Field(
            description="Secret of the same namespace with the store's credentials, in KServe's form. Without it, "
            "the secrets of the service account are used."
        ),
    ] = None


class Model(Type):
    """One version of the model: either files that a model server loads (uri, format), or an image (container)."""

    version: Annotated[
        str,
        Field(
            description="Your name for this version, such as v2 or 2026-11-24. A change of anything else in the "
            "template under the same name is a new version too, and status says that the name was reused.",
            pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
            max_length=40,
        ),
    ]
    uri: Annotated[
        str | None,
        Field(
            description="Where the model's files are: s3://, gs://, hf://, pvc://, https:// and whatever else KServe's "
            "storage initializer reads.",
            pattern=r"^[a-z][a-z0-9+.-]*://.+$",
            max_length=1024,
        ),
    ] = None
    format: Annotated[
        str | None,
        Field(description="Format of the files: sklearn, xgboost, onnx, … It picks the runtime.", max_length=63),
    ] = None
    runtime: Annotated[
        Name | None,
        Field(description="Serving runtime of KServe, by name, instead of the one that the format picks."),
    ] = None
    container: Annotated[
        Container | None, Field(description="An image that serves HTTP, instead of uri and format.")
    ] = None
    args: Annotated[Words, Field(description="Arguments for the model server, after the runtime's own.")] = []
    env: Annotated[Env, Field(description="Environment variables of the model server.")] = []
    storage: Annotated[Storage, Field(description="How the model's files are fetched.")] = Storage()
    transformer: Annotated[
        Transformer | None, Field(description="A container before the model. Needs the KServe backend.")
    ] = None

    model_config = {
        "json_schema_extra": rules(
            (
                "has(self.uri) != has(self.container)",
                "give exactly one of uri (a model's files) and container (an image)",
            ),
            ("!has(self.uri) || has(self.format)", "a model with a uri needs its format, such as sklearn"),
            ("has(self.uri) || !has(self.format)", "format goes with uri"),
            ("has(self.uri) || !has(self.runtime)", "runtime goes with uri"),
            ("has(self.uri) || !has(self.storage)", "storage goes with uri"),
        )
    }


class LocalRef(Type):
    """Another object of the same namespace."""

    name: Annotated[Name, Field(description="Its name.")]


class EmptyDir(Type):
    """Scratch space that lives as long as its pod."""

    size_limit: Annotated[Quantity | None, Field(description="How large it may grow.")] = None


class Volume(Type):
    """Files for the model's container. Exactly one of configMap, secret, persistentVolumeClaim and emptyDir."""

    name: Annotated[
        str, Field(description="Name of the volume.", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    ]
    mount_path: Annotated[str, Field(description="Where the container sees it.", pattern="^/.*", max_length=1024)]
    config_map: Annotated[Name | None, Field(description="ConfigMap whose keys are the files.")] = None
    secret: Annotated[Name | None, Field(description="Secret whose keys are the files.")] = None
    persistent_volume_claim: Annotated[Name | None, Field(description="PersistentVolumeClaim to mount.")] = None
    empty_dir: Annotated[EmptyDir | None, Field(description="Scratch space; always writable.")] = None
    read_only: Annotated[
        bool,
        Field(description="For a persistentVolumeClaim: false lets the model write (Knative has a flag for that)."),
    ] = True

    model_config = {
        "json_schema_extra": rules(
            (
                "[has(self.configMap), has(self.secret), has(self.persistentVolumeClaim), has(self.emptyDir)]"
                ".filter(given, given).size() == 1",
                "give exactly one of configMap, secret, persistentVolumeClaim and emptyDir",
            ),
            ("self.readOnly || has(self.persistentVolumeClaim)", "readOnly: false goes with persistentVolumeClaim"),
        )
    }


class Toleration(Type):
    """Lets the pods run on nodes with a taint."""

    key: Annotated[str, Field(description="Key of the taint.", min_length=1, max_length=316)]
    operator: Annotated[Literal["Exists", "Equal"], Field(description="Exists, or Equal to value.")] = "Exists"
    value: Annotated[str | None, Field(description="Value of the taint, for Equal.", max_length=63)] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(description="Effect of the taint; without it, every effect."),
    ] = None


class Accelerator(Type):
    """Accelerators for each replica, and the nodes that have them."""

    resource: Annotated[
        str,
        Field(
            description="Extended resource to ask for.",
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
            max_length=316,
        ),
    ] = "nvidia.com/gpu"
    count: Annotated[int, Field(description="How many for each replica.", ge=1, le=64)] = 1
    products: Annotated[
        list[Annotated[str, Field(max_length=63)]],
        Field(
            description="Any of these products will do: values of the node label nvidia.com/gpu.product.", max_length=16
        ),
    ] = []
    min_memory: Annotated[
        Quantity | None,
        Field(
            description="Memory that one accelerator has at least, by the node label nvidia.com/gpu.memory. An 80 GB "
            "card has less than 80Gi: write 80G."
        ),
    ] = None
    mig: Annotated[
        str | None,
        Field(
            description="MIG profile such as 1g.10gb: a slice of a GPU instead of whole ones.",
            pattern=r"^[0-9]+g\.[0-9]+gb(\.[a-z0-9.+]+)?$",
            max_length=32,
        ),
    ] = None
    runtime_class: Annotated[Name | None, Field(description="RuntimeClass of the pods, such as nvidia.")] = None
    tolerations: Annotated[
        list[Toleration],
        Field(
            description="Further taints to tolerate. A taint with the resource's name as its key is tolerated always.",
            max_length=16,
        ),
    ] = []

    model_config = {
        "json_schema_extra": rules(
            (
                "self.resource.startsWith('nvidia.com/') || "
                "(!has(self.products) && !has(self.minMemory) && !has(self.mig))",
                "products, minMemory and mig are known for nvidia.com resources only",
            ),
            ("!has(self.mig) || self.resource == 'nvidia.com/gpu'", "mig goes with the resource nvidia.com/gpu"),
        )
    }


class Template(Type):
    """Everything that makes one version: its model and how its pods are set up."""

    model: Annotated[Model, Field(description="The model version to serve.")]
    backend: Annotated[
        Backend | None,
        Field(description="What runs the pods. By default KServe for a uri and Knative for a container."),
    ] = None
    resources: Annotated[Resources, Field(description="Compute resources of the model's container.")] = Resources()
    accelerator: Annotated[Accelerator | None, Field(description="Accelerators for each replica.")] = None
    service_account_name: Annotated[Name | None, Field(description="Service account of the pods.")] = None
    image_pull_secrets: Annotated[
        list[LocalRef],
        Field(
            description="Secrets with which images are pulled.",
            max_length=16,
            json_schema_extra=keyed("name"),
        ),
    ] = []
    volumes: Annotated[
        list[Volume],
        Field(
            description="Files for the model's container.",
            max_length=16,
            json_schema_extra=keyed("name"),
        ),
    ] = []
    timeout: Annotated[
        Duration | None,
        Field(description="How long a request may take, whole seconds. By default Knative's, 300s unless configured."),
    ] = None
    concurrency: Annotated[
        int, Field(description="Requests that one replica works on at once at most; 0 is no limit.", ge=0, le=1000)
    ] = 0

    @property
    def backed_by(self) -> Backend:
        """The backend, with the default worked out."""
        return self.backend or ("Knative" if self.model.container else "KServe")


TEMPLATE_RULES = (
    (
        "!has(self.backend) || self.backend != 'Knative' || has(self.model.container)",
        "the Knative backend runs images: give model.container",
    ),
    (
        "!has(self.model.transformer) || (has(self.backend) ? self.backend == 'KServe' : has(self.model.uri))",
        "a transformer needs the KServe backend: set backend: KServe",
    ),
    ("!has(self.timeout) || duration(self.timeout) >= duration('1s')", "timeout: at least 1s"),
    ("!has(self.timeout) || duration(self.timeout) <= duration('24h')", "timeout: at most 24h"),
)
"""CEL rules over the fields of a template, for every type that holds them."""
