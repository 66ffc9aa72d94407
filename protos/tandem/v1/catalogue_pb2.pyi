from protos.tandem.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Item(_message.Message):
    __slots__ = ("item_id", "fields", "updated_ms")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _records_pb2.FieldValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_records_pb2.FieldValue, _Mapping]] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    UPDATED_MS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    fields: _containers.MessageMap[str, _records_pb2.FieldValue]
    updated_ms: int
    def __init__(self, item_id: _Optional[str] = ..., fields: _Optional[_Mapping[str, _records_pb2.FieldValue]] = ..., updated_ms: _Optional[int] = ...) -> None: ...

class ItemsRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class RemoveItemsRequest(_message.Message):
    __slots__ = ("item_ids", "updated_ms")
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    UPDATED_MS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    updated_ms: int
    def __init__(self, item_ids: _Optional[_Iterable[str]] = ..., updated_ms: _Optional[int] = ...) -> None: ...

class ChangeItemsRequest(_message.Message):
    __slots__ = ("upsert", "patch", "remove")
    UPSERT_FIELD_NUMBER: _ClassVar[int]
    PATCH_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    upsert: ItemsRequest
    patch: ItemsRequest
    remove: RemoveItemsRequest
    def __init__(self, upsert: _Optional[_Union[ItemsRequest, _Mapping]] = ..., patch: _Optional[_Union[ItemsRequest, _Mapping]] = ..., remove: _Optional[_Union[RemoveItemsRequest, _Mapping]] = ...) -> None: ...

class ChangesResponse(_message.Message):
    __slots__ = ("changed", "stale", "unknown_item_ids", "unknown")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    changed: int
    stale: int
    unknown_item_ids: _containers.RepeatedScalarFieldContainer[str]
    unknown: int
    def __init__(self, changed: _Optional[int] = ..., stale: _Optional[int] = ..., unknown_item_ids: _Optional[_Iterable[str]] = ..., unknown: _Optional[int] = ...) -> None: ...

class GetItemsRequest(_message.Message):
    __slots__ = ("item_ids",)
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportItemsRequest(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    def __init__(self, removed: _Optional[bool] = ...) -> None: ...

class GetItemsResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[KnownItem]
    def __init__(self, items: _Optional[_Iterable[_Union[KnownItem, _Mapping]]] = ...) -> None: ...

class KnownItem(_message.Message):
    __slots__ = ("item", "removed")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    item: Item
    removed: bool
    def __init__(self, item: _Optional[_Union[Item, _Mapping]] = ..., removed: _Optional[bool] = ...) -> None: ...
